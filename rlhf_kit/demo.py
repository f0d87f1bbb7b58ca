"""The whole story on the embedded world, in one process and with nothing downloaded.

base → SFT → reward model → PPO, by the public recipes (`stages/recipes/world/`), and PPO once more with nothing that
holds it near SFT, to see the reward model being fooled. Then all four policies answer the same held-out prompts, and a
judge who knows the truth compares them; the stage report (`eval/suite/world.yaml`) tells what each stage gained and
lost.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import sys
import time
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from rlhf_kit import world
from rlhf_kit.comparison.answers import Answers, Questions, differences, summarize, world_judge
from rlhf_kit.errors import UserError
from rlhf_kit.escaping import markdown, markdown_row
from rlhf_kit.eval import runner
from rlhf_kit.eval.suite.task import Suite, SuiteArguments
from rlhf_kit.feedback import teaching
from rlhf_kit.feedback.asking import LETTERS
from rlhf_kit.feedback.truth import Compared
from rlhf_kit.models.checkpoints import load_policy, load_reward_model, load_tokenizer
from rlhf_kit.options import option, reading
from rlhf_kit.pages.shell import REPORT, link_back
from rlhf_kit.ppo.rewards import Rewards
from rlhf_kit.report.page import write_report
from rlhf_kit.stages import ppo, pretrain, reward, sft
from rlhf_kit.stages.output import check_contents
from rlhf_kit.storage import RUN, Folder, clear, listed, strangers
from rlhf_kit.terminal import complain
from rlhf_kit.terminal.console import Console
from rlhf_kit.versions import TRAINING, versions

RECIPES = reading.RECIPES / "world"
POLICIES = {"base": "base", "sft": "sft", "ppo": "ppo", "ppo_no_kl": "ppo-no-kl"}  # name in the summary -> folder
STAGES = {"pretrain": pretrain.start, "sft": sft.start, "reward": reward.start, "ppo": ppo.start}
RUNS = (*POLICIES.values(), "reward", "reward-human")
# Of a stage; any other stage's folder has its name.
FOLDERS = POLICIES | {"pretrain": "base", "reward_human": "reward-human"}
TITLES = {
    "human": "Rank these as you like them 照你的喜好排序",
    "pretrain": "0 · Pretraining: predict the next token 預訓練：文字接龍",
    "sft": "1 · Supervised fine-tuning on demonstrations 監督式微調：學人怎麼回答",
    "reward": "2 · Reward model on ranked answers 獎勵模型：學人覺得哪個好",
    "reward_human": "2b · The reward model learns from your rankings 獎勵模型也學你的排序",
    "ppo": "3 · PPO against the reward model, near SFT 強化學習：討好獎勵模型，別走遠",
    "ppo_no_kl": "3b · PPO with no KL penalty, on purpose 拿掉 KL 懲罰：故意讓它走火入魔",
    "measure": "4 · Measured against the truth 用真相來評分",
    "suite": "5 · What each stage gained and lost 各階段的得與失",
}
SUITE = ("base", "sft", "ppo")  # one after the other
DRAWN = 4
CHOSEN = {
    "telling": "picked to show the difference 特地挑來看差別",
    "drawn": "drawn by the seed 由種子隨機抽出",
}
RANKED = "human.jsonl"  # the user's own rankings
# A few lists, which are to be learnt and not to undo what the others taught.
LITTLE = {"num_train_epochs": 4, "learning_rate": 1e-4, "per_device_train_batch_size": 1, "warmup_steps": 0}
COMPARED = {"ppo": ("sft",), "ppo_no_kl": ("sft", "ppo")}
IN_A_TERMINAL = "Start the demo in a terminal, or leave --human out. 請在終端機執行，或不要用 --human。"
console = Console()


@dataclass
class Demo:
    """One run of the story; `seconds` fills up as the stages end."""

    folder: Path
    seed: int
    seconds: dict[str, float] = field(default_factory=dict)
    status: int = 0  # of the stage report: what went before is kept whatever becomes of it
    ranked: list[dict[str, Any]] = field(default_factory=list)  # by the user

    def stage(self, name: str, recipe: str, config: str, **options: Any) -> None:
        """Run a recipe with its YAML and `options`. Raises UserError."""
        console.rule(Text(TITLES[name], "bold"), align="left")
        start = time.perf_counter()
        output = self.folder / FOLDERS.get(name, name)
        options |= {"config": RECIPES / config, "output_dir": output, "overwrite_output_dir": True, "seed": self.seed}
        with redirect_stdout(io.StringIO()):  # what comes next is told at the end
            STAGES[recipe](options)
        self.seconds[name] = time.perf_counter() - start

    def run(self, pretrain: bool) -> dict:
        base, tuned = (self.folder / name for name in ("base", "sft"))
        if pretrain:
            self.stage("pretrain", "pretrain", "pretrain-quick.yaml")
        else:
            copied = Folder(base, RUN)
            copied.clear()
            for path in sorted(Path(world.BASE).iterdir()):
                copied.write(path.name, path.read_bytes())
        self.stage("sft", "sft", "sft.yaml", model_name_or_path=base)
        self.stage("reward", "reward", "reward.yaml", model_name_or_path=tuned)
        human = {"human": self.learn_from_user()} if self.ranked else {}
        options = {"model_name_or_path": tuned, "reward_funcs": [str(self.judge), "rlhf_kit.world:truth_reward"]}
        self.stage("ppo", "ppo", "ppo-ptx.yaml", **options)
        self.stage("ppo_no_kl", "ppo", "ppo.yaml", **options, kl_coef=0)
        summary = self.measure() | human
        self.report_stages()
        seconds = {name: round(value, 1) for name, value in self.seconds.items()}
        return {"seconds": seconds | {"total": round(sum(self.seconds.values()), 1)}} | summary

    @property
    def judge(self) -> Path:
        """The reward model that PPO follows."""
        return self.folder / ("reward-human" if self.ranked else "reward")

    def learn_from_user(self) -> dict:
        """Train the reward model a little further on the user's rankings. -> what that moved."""
        options = {"model_name_or_path": self.folder / "reward", "dataset_name": self.folder / RANKED}
        self.stage("reward_human", "reward", "reward.yaml", **options, **LITTLE)
        human = self.moved_by_user()
        show_human(human)
        return human

    def moved_by_user(self) -> dict:
        """What the user's rankings moved: in each list, and in the accuracy on the world's held-out rankings."""
        tokenizer, folders = load_tokenizer(self.folder / "sft"), (self.folder / "reward", self.judge)
        models = [teaching.scores_of(load_reward_model(folder).eval(), tokenizer) for folder in folders]
        answers = [dict(zip(LETTERS, row["completions"], strict=False)) for row in self.ranked]
        moved = zip(answers, teaching.moved(self.ranked, *models), strict=True)
        return {
            "lists": [{"answers": texts} | asdict(one) for texts, one in moved],
            "accuracy": [accuracy_of(folder) for folder in folders],
        }

    def report_stages(self) -> None:
        """`rlhf-kit eval suite` on the stages' models; what an earlier demo left there is of other models."""
        console.rule(Text(TITLES["suite"], "bold"), align="left")
        start = time.perf_counter()
        output = self.folder / "suite"
        clear(output)
        models = [f"{name}={self.folder / name}" for name in SUITE]
        try:
            runner.run(Suite, SuiteArguments(models=models, output_dir=str(output)))
        except UserError as error:
            complain(f"{error}")
            self.status = error.status
        self.seconds["suite"] = time.perf_counter() - start

    def measure(self) -> dict:
        """All policies on the held-out prompts. -> the summary, but for its times."""
        console.rule(Text(TITLES["measure"], "bold"), align="left")
        start = time.perf_counter()
        prompts = world.rows("prompts", "test")
        tokenizer = load_tokenizer(self.folder / "sft")
        sft = load_policy(self.folder / "sft").eval()
        rewards = Rewards(str(self.judge), None, None, tokenizer, batch_size=16)
        questions = Questions([row["prompt"] for row in prompts], tokenizer, sft, rewards, world_judge)
        answers = {}
        for name, folder in POLICIES.items():
            policy = sft if name == "sft" else load_policy(self.folder / folder).eval()
            answers[name] = questions.answers(policy, self.seed)
        self.seconds["measure"] = time.perf_counter() - start
        return {
            "stages": {name: summarize(answered, answers["sft"]) for name, answered in answers.items()},
            "differences": {
                stage: {before: differences(answers[stage], answers[before], self.seed) for before in others}
                for stage, others in COMPARED.items()
            },
            "reward_model": {
                "accuracy": accuracy_of(self.judge),
                "accuracy_ceiling": world.accuracy_ceiling(world.rows("ranked", "test")),
            },
            "samples": samples(prompts, answers, self.seed),
            "seed": self.seed,
            "machine": f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads",
            "versions": versions(TRAINING),
        }


def accuracy_of(folder: Path) -> float:
    """Of a reward model, on the world's held-out rankings."""
    return json.loads((folder / "run.json").read_text())["metrics"]["eval_accuracy"]


def telling(prompts: list[dict], answers: dict[str, Answers]) -> list[int]:
    """Three prompts, one of them Chinese: the first of each kind where the policies' answers all differ."""
    different = [
        i for i in range(len(prompts)) if len({policy.texts[i] for policy in answers.values()}) == len(answers)
    ]
    chosen: list[int] = []
    for category, language in (("fact", "en"), ("fact", "zh"), ("harmful", "en")):
        order = sorted(range(len(prompts)), key=lambda i: i not in different)
        match = [i for i in order if prompts[i]["category"] == category and prompts[i]["language"] == language]
        chosen.append((match or order)[0])
    return chosen


def samples(prompts: list[dict], answers: dict[str, Answers], seed: int) -> list[dict]:
    """The telling prompts, and others as the seed draws them: what is picked shows no policy as it mostly is."""
    picked = telling(prompts, answers)
    others = [i for i in range(len(prompts)) if i not in picked]
    drawn = random.Random(seed).sample(others, DRAWN)
    return [
        sample_row(prompts[i], answers, i, chosen)
        for chosen, rows in (("telling", picked), ("drawn", drawn))
        for i in rows
    ]


def sample_row(prompt: dict, answers: dict[str, Answers], i: int, chosen: str) -> dict:
    return {
        "chosen": CHOSEN[chosen],
        "prompt": prompt["prompt"][-1]["content"],
        "language": prompt["language"],
        "category": prompt["category"],
        "answers": {
            name: {"text": policy.texts[i], "truth": policy.truth[i], "score": policy.scores[i]}
            for name, policy in answers.items()
        },
    }


COLUMNS = {"base": "base 預訓練", "sft": "SFT 微調", "ppo": "PPO", "ppo_no_kl": "no KL 無懲罰"}
ROWS = {
    "truth": "truth 真相 (1 = best)",
    "correct": "correct 答對比例",
    "reward_model_score": "reward-model score 獎勵分數",
    "kl": "KL to SFT 離 SFT (nats)",
    "win_rate_vs_sft": "wins over SFT 勝過 SFT",
}


def show(summary: dict, folder: Path) -> None:
    """The tables at the end, and what to do next."""
    table = Table("", title="Held-out prompts 沒看過的題目", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    for key, title in ROWS.items():
        table.add_row(title, *(f"{summary['stages'][name][key]:.2f}" for name in COLUMNS))
    console.print(table)
    for row in summary["samples"]:
        heading = f"“{row['prompt']}”\n{row['chosen']}"
        table = Table(title=heading, title_justify="left", show_lines=True)
        for title in ("", "answer 回答", "truth 真相", "score 獎勵"):
            table.add_column(title)
        for name, title in COLUMNS.items():
            answer = row["answers"][name]
            table.add_row(
                title, answer["text"] or "(nothing 空白)", f"{answer['truth']:.2f}", f"{answer['score']:.2f}"
            )
        console.print(table)
    reward = summary["reward_model"]
    console.tell(
        f"Reward model 獎勵模型: accuracy {reward['accuracy']:.3f}, where the labelers' own noise allows "
        f"{reward['accuracy_ceiling']:.3f} (標註者雜訊的上限).  Total 共 {summary['seconds']['total']:.0f} s."
    )
    pages = {
        folder / REPORT: "the curves 曲線",
        folder / "suite" / REPORT: "what each stage gained and lost 各階段的得失",
        folder / "samples.md": "the answers 回答",
    }
    compare = f"rlhf-kit compare-methods --config world/compare-methods --output_dir {folder / 'compare'}"
    steps = activation() | {
        compare: "PPO beside DPO, KTO, RLOO, GRPO and best-of-n 和其他方法比較",
        "rlhf-kit ppo --help": "every option 所有選項",
        "rlhf-kit sft --config recipes/gpt2/sft.yaml --output_dir runs/gpt2/sft": "the same with GPT-2 換成 GPT-2",
    }
    for title, lines in {"In a browser 用瀏覽器開啟：": pages, "Next 接下來：": steps}.items():
        rows = [f"  {line}\n      {words}" for line, words in lines.items()]
        console.print("\n".join(["", title, *rows]), soft_wrap=True)  # to be copied


def show_human(human: dict) -> None:
    """What the user's rankings moved."""
    for one in human["lists"]:
        lines = [f"“{one['prompt']}”", *(f"  {letter}  {text}" for letter, text in one["answers"].items())]
        orders = {"yours 你的": "order", "before 之前": "before", "after 之後": "after"}
        lines.append("   ".join(f"{words}: {one[name]}" for words, name in orders.items()))
        right = f"{one['right_before']} → {one['right_after']} / {one['pairs']}"
        console.print("\n".join([*lines, f"pairs as you order them 與你一致的組數: {right}", ""]), soft_wrap=True)
    before, after, pairs = (
        sum(one[key] for one in human["lists"]) for key in ("right_before", "right_after", "pairs")
    )
    console.tell(f"The model agrees with you on 模型與你一致: {before} → {after} of {pairs} pairs.")
    before, after = human["accuracy"]
    console.tell(f"Its accuracy on held-out rankings 沒看過的排序上的準確率: {before:.3f} → {after:.3f}.")
    known = [one["compared"] for one in human["lists"] if one["compared"] is not None]
    if known:
        total = Compared(**{name: sum(each[name] for each in known) for name in known[0]})
        console.tell(f"Your rankings 你的排序. {total}")


def activation() -> dict[str, str]:
    """What makes `rlhf-kit` a command of the shell, where it is not, as `make demo` runs it by its path -> why."""
    script, command = Path(sys.prefix, "bin", "activate"), shutil.which("rlhf-kit")
    if not script.is_file() or (command and Path(command).parent == script.parent):
        return {}
    shown = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
    return {f"source {shown}": "so that the shell finds rlhf-kit 讓終端機找得到 rlhf-kit"}


def samples_page(summary: dict) -> str:
    lines = ["# Samples 回答範例", ""]
    for row in summary["samples"]:
        lines += [
            f"## {markdown(row['prompt'])}",
            "",
            row["chosen"],
            "",
            "| | answer 回答 | truth 真相 | score 獎勵 |",
            "| --- | --- | --- | --- |",
        ]
        for name, title in COLUMNS.items():
            answer = row["answers"][name]
            lines.append(markdown_row([title, answer["text"], f"{answer['truth']:.2f}", f"{answer['score']:.2f}"]))
        lines.append("")
    return "\n".join(lines)


@dataclass
class DemoOptions:
    output_dir: Path = option(Path("runs/demo"), "Folder to write. 輸出資料夾")
    seed: int = option(0, "Seed of all stages. 亂數種子")
    human: int = option(0, "Rank N lists yourself first; the reward model learns from them too. 自己先排 N 組")
    pretrain: bool = option(False, "First pre-train a smaller base on the spot. 先自己預訓練一個")


def run(options: DemoOptions) -> int:
    """`rlhf-kit demo`; returns the exit status. Raises UserError."""
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one process trains on one GPU
    if options.human and not (sys.stdin and sys.stdin.isatty()):
        raise UserError(f"--human {options.human}: the standard input is not a terminal. {IN_A_TERMINAL}")
    return tell(Demo(options.output_dir, options.seed), options.pretrain, options.human)


def typed(prompt: str) -> str:
    """A line that the user types. Raises UserError where the input ends."""
    try:
        return input(prompt)
    except EOFError:
        raise UserError(f"--human: the standard input ended. {IN_A_TERMINAL}") from None


def tell(story: Demo, pretrain: bool, human: int = 0, read: teaching.Read = typed) -> int:
    """The whole story into its folder; returns the exit status.

    Args:
        human: lists that the user ranks before anything is trained; read: gives what is typed, as `typed` does.

    Raises UserError where the folder is not a demo's, or the input ends.
    """
    folder = story.folder
    check_folder(folder)
    files = Folder(folder, "demo")
    files.mark(*RUNS, "suite")
    files.lock()
    try:
        if human:
            console.rule(Text(TITLES["human"], "bold"), align="left")
            story.ranked = teaching.rank(console, read, teaching.lists_to_rank(human, story.seed))
        if story.ranked:
            files.write(RANKED, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in story.ranked))
        summary = story.run(pretrain)
    finally:
        files.unlock()
    files.write("summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    files.write("samples.md", samples_page(summary))
    runs = {name: folder / run for name, run in POLICIES.items()} | {"reward": folder / "reward"}
    runs |= {"reward_human": story.judge} if story.ranked else {}
    pages = {"suite/report.html": "What each stage gained and lost 各階段的得與失"}
    pages |= {"compare/report.html": "Methods side by side 方法比較"}  # where that was made
    write_report(folder / REPORT, summary, runs, pages)
    link_back(folder / "suite" / REPORT, "eval suite", folder / REPORT)
    show(summary, folder)
    return story.status


def check_folder(folder: Path) -> None:
    """Raises UserError for a folder that is not a demo's, or holds what a demo would replace and has not written."""
    files, advice = Folder(folder, "demo"), "Nothing was changed: give another --output_dir, or move it away."
    files.check("--output_dir")
    files.check_lock()
    held = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
    known = files.entries()
    if held and not known:
        raise UserError(
            f"--output_dir {str(folder)!r} is not a demo's folder, or that of an earlier version's, which kept no "
            f"record: it holds {listed(held)}. {advice}"
        )
    foreign = [name for name in (*RUNS, "suite") if name in held and name not in known]
    foreign += files.foreign(["summary.json", "samples.md", RANKED, REPORT])
    foreign += [f"suite/{name}" for name in strangers(folder / "suite")]
    if foreign:
        raise UserError(f"--output_dir {str(folder)!r}: no demo has written {listed(foreign)} as it is now. {advice}")
    for run in RUNS:
        check_contents(folder / run, None, may_replace=True)
