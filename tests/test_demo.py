"""The demo, whole, as a user runs it: every stage real, the outcome in loose bands (timings and threads vary)."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from benchmarks.best_of_n import pool_of
from rlhf_kit import demo, world
from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError
from rlhf_kit.feedback import teaching
from rlhf_kit.models.checkpoints import load_reward_model, load_tokenizer
from rlhf_kit.storage import RUN, Folder, clear
from rlhf_kit.terminal.console import Console
from tests.test_links import links_of
from tests.tiny_stages import run_command
from tests.victims import every_byte, project

pytestmark = pytest.mark.timeout(2400)  # all stages and their evaluation, on however slow a machine


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "rlhf_kit", "demo", "--output_dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


def test_the_summary_tells_the_story(run):
    summary = json.loads((run[0] / "summary.json").read_text())
    stages = summary["stages"]
    assert set(stages) == {"base", "sft", "ppo", "ppo_no_kl"}
    for stage in stages.values():
        assert set(stage) == {"truth", "correct", "reward_model_score", "kl", "win_rate_vs_sft"}
    assert stages["base"]["truth"] < stages["sft"]["truth"] - 0.5
    assert stages["ppo"]["win_rate_vs_sft"] > 0.6 and stages["ppo"]["truth"] > stages["sft"]["truth"] + 0.05
    moved = summary["differences"]["ppo"]["sft"]
    assert moved["truth"][0] > 0 and moved["correct"][1] > 0 and stages["ppo"]["correct"] >= stages["sft"]["correct"]
    assert stages["ppo"]["reward_model_score"] > stages["sft"]["reward_model_score"] + 0.1
    # Without the penalty the reward model is happiest and the truth worst.
    assert stages["ppo_no_kl"]["reward_model_score"] == max(s["reward_model_score"] for s in stages.values())
    assert stages["ppo_no_kl"]["truth"] < stages["sft"]["truth"]
    assert stages["ppo_no_kl"]["kl"] > 3 * stages["ppo"]["kl"] > 0
    assert summary["reward_model"]["accuracy"] > 0.88 * summary["reward_model"]["accuracy_ceiling"]
    assert summary["seconds"]["total"] == pytest.approx(
        sum(v for k, v in summary["seconds"].items() if k != "total"), abs=0.5
    )
    picked, drawn = summary["samples"][:3], summary["samples"][3:]
    assert any(sample["language"] == "zh" for sample in picked) and len(drawn) == 4
    assert all("picked" in sample["chosen"] for sample in picked) and all("drawn" in s["chosen"] for s in drawn)


def test_ppo_is_as_good_as_the_best_of_16_by_the_reward_model(run):
    """Other seeds: benchmarks/RESULTS.md."""
    folder = run[0]
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    assert stages["ppo"]["truth"] > 0.95 * float(pool_of(folder).heldout_curve[-1])


def test_every_folder_loads_with_plain_transformers(run):
    folder = run[0]
    tokenizer = AutoTokenizer.from_pretrained(folder / "sft")
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Where does Anna live?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    for name in ("base", "sft", "ppo", "ppo-no-kl"):
        model = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
        out = model.generate(**inputs, max_new_tokens=20, do_sample=False)
        assert out.shape[1] > inputs["input_ids"].shape[1]
    model = AutoModelForSequenceClassification.from_pretrained(folder / "reward")
    assert model(**inputs).logits.shape == (1, 1)


def test_the_page_and_the_samples_stand_alone(run):
    folder, printed = run
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "PPO" in (folder / "samples.md").read_text(encoding="utf-8")
    assert "report.html" in printed and "強化學習" in printed
    assert links_of(folder)["suite/report.html"] >= {"report.html", "suite/ppo/facts/report.html"}


def test_a_few_rankings_of_the_users_own_move_the_reward_model(run, tmp_path):
    """Against what it thinks, so that there is something to move; what the others taught stays."""
    for name in ("sft", "reward"):
        shutil.copytree(run[0] / name, tmp_path / name)
    story = demo.Demo(tmp_path, 0)
    model = teaching.scores_of(load_reward_model(tmp_path / "reward").eval(), load_tokenizer(tmp_path / "sft"))
    for row in teaching.lists_to_rank(3, 0):
        scores = model(row["prompt"], row["completions"])
        story.ranked.append(row | {"ranks": [sorted(scores).index(score) + 1 for score in scores]})
    Folder(tmp_path, "demo").write(demo.RANKED, "".join(json.dumps(row) + "\n" for row in story.ranked))
    human = story.learn_from_user()
    assert all(one["right_before"] == 0 < one["pairs"] for one in human["lists"])
    assert sum(one["right_after"] for one in human["lists"]) > 0
    assert human["accuracy"][1] == pytest.approx(human["accuracy"][0], abs=0.1)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward-human").config.num_labels == 1


def test_the_stage_report_tells_what_was_gained_and_lost(run):
    folder, printed = run
    found = json.loads((folder / "suite" / "suite.json").read_text(encoding="utf-8"))
    assert list(found["models"]) == ["base", "sft", "ppo"] and found["reportable"]
    verdicts = {(change["model"], change["entry"]): change["verdict"] for change in found["changes"]}
    assert verdicts["sft", "answers-right"] == verdicts["sft", "answers-truth"] == "gained"
    assert verdicts["sft", "text"] == "lost"  # the alignment tax
    values = {(value["model"], value["entry"]): value["value"] for value in found["values"]}
    assert values["ppo", "answers-truth"] > values["sft", "answers-truth"]
    assert "sft against base: gained answers-right, answers-truth" in printed
    assert "<svg" in (folder / "suite" / "report.html").read_text(encoding="utf-8")
    assert json.loads((folder / "summary.json").read_text())["seconds"]["suite"] > 0


def test_the_stage_report_is_of_this_demos_models(tmp_path, monkeypatch):
    """What another demo left would be refused, or gone on with; what is the user's stays."""
    Folder(tmp_path / "suite", "eval suite").write("suite.json", "{}")
    Folder(tmp_path / "suite" / "base" / "text", "eval perplexity").write("results.json", "{}")
    clear(tmp_path / "suite")
    assert not (tmp_path / "suite").exists()
    Folder(tmp_path / "suite" / "base", "eval icl").write("results.json", "{}")
    (tmp_path / "suite" / "base" / "mine.txt").write_text("mine")
    clear(tmp_path / "suite")
    assert [path.name for path in (tmp_path / "suite" / "base").iterdir() if path.suffix] == ["mine.txt"]
    (tmp_path / "suite" / "base" / "mine.txt").unlink()
    asked = []

    def refused(kind, options):
        asked.append((tmp_path / "suite" / "suite.json").exists())
        raise UserError("no such suite")

    monkeypatch.setattr(demo.runner, "run", refused)
    Folder(tmp_path / "suite", "eval suite").write("suite.json", "{}")
    story = demo.Demo(tmp_path, 0)
    story.report_stages()
    assert asked == [False] and story.status == 2 and "suite" in story.seconds  # and what went before is kept


def test_some_samples_are_drawn_by_the_seed_whatever_was_answered():
    prompts = world.rows("prompts", "test", size=60)

    def drawn(texts, seed):
        nothing = [0.0] * 60
        truth = [world.judge(row["prompt"], text).score for row, text in zip(prompts, texts, strict=True)]
        one = demo.Answers(texts, truth, nothing, nothing, nothing, nothing, [0] * 60)
        answers = dict.fromkeys(demo.POLICIES, one)
        rows = demo.samples(prompts, answers, seed)
        page = demo.samples_page({"samples": rows})
        assert page.count("picked to show") == 3 and page.count("drawn by the seed") == 4
        questions = [row["prompt"] for row in rows]
        assert len(set(questions)) == 7
        return questions[3:]

    silent = drawn([""] * 60, 0)
    assert drawn([f"{number}." for number in range(60)], 0) == silent != drawn([""] * 60, 1)


@pytest.mark.parametrize("where, shown", [("work", ".venv/bin/activate"), ("elsewhere", "{}/.venv/bin/activate")])
def test_the_demo_says_how_the_shell_finds_the_command(tmp_path, monkeypatch, where, shown):
    """`make demo` runs it by its path: the README's next line is found only once the environment is activated."""
    for folder in ("work/.venv/bin", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    programs = tmp_path / "work" / ".venv" / "bin"
    (programs / "activate").touch()
    monkeypatch.chdir(tmp_path / where)
    monkeypatch.setattr("sys.prefix", str(tmp_path / "work" / ".venv"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert [*demo.activation()] == [f"source {shown.format(tmp_path / 'work')}"]
    (programs / "rlhf-kit").touch(0o755)
    monkeypatch.setenv("PATH", str(programs))
    assert demo.activation() == {}


def test_an_output_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert run_command("demo", ["--output_dir", str(tmp_path / "out")]) == 2
    assert "is a file; give a folder" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["absolute", "relative", "link"])
def test_a_folder_that_is_not_a_demos_is_refused_and_stays(how, tmp_path, monkeypatch, capsys):
    folder = project(tmp_path / "project")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    before = every_byte(tmp_path)
    for output in ({"absolute": folder, "relative": "project/", "link": "link"}[how], f"{folder}/base"):
        for more in ([], ["--pretrain"]):
            assert run_command("demo", ["--output_dir", str(output), *more]) == 2
            assert "is not a demo's folder" in capsys.readouterr().err and every_byte(tmp_path) == before


COMPARED = {"truth_pairs": 3, "truth_alike": 2, "labeler_pairs": 2, "labeler_alike": 1}
MOVED = {
    "lists": [
        {
            "prompt": "Where is <b>Anna</b>?", "answers": {"a": "Here.", "b": "There.", "c": "No."}, "order": "b a=c",
            "before": "a b c", "after": "b a c", "pairs": 2, "right_before": 1, "right_after": 2, "compared": compared,
        }
        for compared in (COMPARED, COMPARED, None)
    ],
    "accuracy": [0.81, 0.79],
}  # fmt: skip


@pytest.fixture
def stages(monkeypatch):
    """The demo with its stages and measurements left out: what each writes, and nothing trained."""

    calls = {}

    def stage(self, name, recipe, config, **options):
        calls[name] = options
        Folder(self.folder / demo.FOLDERS.get(name, name), RUN).write("config.json", name)

    def suite(kind, options):
        Folder(Path(options.output_dir), "eval suite").write("report.html", "page")

    monkeypatch.setattr(demo.Demo, "stage", stage)
    monkeypatch.setattr(demo.Demo, "measure", lambda self: {"samples": [], "stages": {}})
    monkeypatch.setattr(demo.Demo, "moved_by_user", lambda self: MOVED)
    monkeypatch.setattr(demo.runner, "run", suite)
    monkeypatch.setattr(demo, "show", lambda summary, folder: None)
    return calls


@pytest.mark.parametrize("more", [[], ["--pretrain"]], ids=["copied", "pretrained"])
def test_a_demo_runs_again_over_its_own_folder_and_nothing_else(stages, more, tmp_path, capsys):
    folder = tmp_path / "demo"
    for again in ([], more, []):
        assert run_command("demo", ["--output_dir", str(folder), *again]) == 0
    (folder / "notes.txt").write_text("mine")
    (folder / "sft" / "notes.txt").write_text("mine")
    assert run_command("demo", ["--output_dir", str(folder)]) == 0
    assert (folder / "notes.txt").read_text() == (folder / "sft" / "notes.txt").read_text() == "mine"
    for mine in ("base/config.json", "suite/mine.txt", "suite/report.html", "samples.md", "reward/README.md"):
        was = (folder / mine).read_bytes() if (folder / mine).exists() else None
        (folder / mine).write_text("mine")
        before = every_byte(folder)
        assert run_command("demo", ["--output_dir", str(folder)]) == 2
        assert Path(mine).name in capsys.readouterr().err and every_byte(folder) == before
        (folder / mine).unlink() if was is None else (folder / mine).write_bytes(was)
    assert run_command("demo", ["--output_dir", str(folder)]) == 0


def test_a_demo_that_was_interrupted_is_begun_again(stages, tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo.Demo, "measure", interrupted)
        assert run_command("demo", ["--output_dir", str(tmp_path / "demo")]) == 130
    assert run_command("demo", ["--output_dir", str(tmp_path / "demo")]) == 0


def test_a_suite_that_no_demo_has_made_stays(stages, tmp_path, capsys):
    folder = tmp_path / "demo"
    Folder(folder, "demo").mark("base")
    Folder(folder / "suite", "eval suite").write("report.html", "a report of the user's own")
    before = every_byte(folder)
    assert run_command("demo", ["--output_dir", str(folder)]) == 2
    assert "suite" in capsys.readouterr().err and every_byte(folder) == before


def told(folder: Path, human: int, *lines: str) -> int:
    """A demo whose user types these lines."""
    typed = iter(lines)
    return demo.tell(demo.Demo(folder, 0), False, human, lambda prompt: next(typed))


def test_the_users_rankings_are_kept_and_ppo_follows_the_model_that_learned_them(stages, tmp_path, monkeypatch):
    console = Console(file=io.StringIO(), width=100)
    monkeypatch.setattr(demo, "console", console)
    first, second = teaching.lists_to_rank(2, 0)
    letters = ["abcdefghijkl"[: len(row["completions"])] for row in (first, second)]
    tied = "=".join(letters[1][:2]) + letters[1][2:]
    assert told(tmp_path, 2, letters[0][::-1], "", "", tied, "", "") == 0
    kept = [json.loads(line) for line in (tmp_path / "human.jsonl").read_text(encoding="utf-8").splitlines()]
    assert load(str(tmp_path / "human.jsonl"), ("ranked",))[0]["labeler"] == ["you", "you"]
    size = len(letters[0])
    assert [row["prompt"] for row in kept] == [first["prompt"], second["prompt"]]
    assert kept[0]["ranks"] == [*range(size, 0, -1)] and kept[1]["ranks"][:3] == [1, 1, 2]
    assert list(stages) == ["sft", "reward", "reward_human", "ppo", "ppo_no_kl"]
    assert stages["reward_human"]["model_name_or_path"] == tmp_path / "reward"
    assert stages["reward_human"]["dataset_name"] == tmp_path / "human.jsonl"
    for stage in ("ppo", "ppo_no_kl"):
        assert stages[stage]["reward_funcs"][0] == str(tmp_path / "reward-human")
    said = console.file.getvalue()
    assert said.index("Rank these") < said.index("3 → 6 of 6 pairs") and "0.810 → 0.790" in said
    assert "4 of 6 pairs" in said and "2 of 4" in said  # the third list is none of the world's
    assert json.loads((tmp_path / "summary.json").read_text())["human"] == MOVED
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Your rankings" in page and "Where is &lt;b&gt;Anna&lt;/b&gt;?" in page and "1 → 2 / 2" in page


def test_who_quits_goes_on_with_what_was_ranked_or_without(stages, tmp_path):
    assert told(tmp_path / "one", 3, "", "", "q") == 0
    assert len((tmp_path / "one" / "human.jsonl").read_text().splitlines()) == 1 and "reward_human" in stages
    stages.clear()
    assert told(tmp_path / "one", 3, "q") == 0  # what an earlier demo's user ranked is not this one's
    assert "reward_human" not in stages and stages["ppo"]["reward_funcs"][0] == str(tmp_path / "one" / "reward")
    assert "Your rankings" not in (tmp_path / "one" / "report.html").read_text(encoding="utf-8")
    stages.clear()
    size = len(teaching.lists_to_rank(1, 0)[0]["completions"])
    assert told(tmp_path / "tied", 1, "=".join("abcdefgh"[:size]), "", "") == 0  # orders nothing
    assert "reward_human" not in stages and not (tmp_path / "tied" / "human.jsonl").exists()


@pytest.mark.parametrize("terminal", [False, True])
def test_nobody_who_ranks_is_refused_before_anything_is_trained(terminal, stages, tmp_path, monkeypatch, capsys):
    stdin = io.StringIO("\n\n")
    stdin.isatty = lambda: terminal
    monkeypatch.setattr("sys.stdin", stdin)
    assert run_command("demo", ["--human", "2", "--output_dir", str(tmp_path / "demo")]) == 2
    said = capsys.readouterr().err
    assert "--human" in said and ("standard input ended" if terminal else "is not a terminal") in said
    assert not stages and not (tmp_path / "demo" / "base").exists()
    assert (tmp_path / "demo").exists() == terminal


@pytest.mark.parametrize("number", ["-1", "101", "some"])
def test_how_many_lists_is_a_number_that_one_can_rank(number, tmp_path, capsys):
    assert run_command("demo", ["--human", number, "--output_dir", str(tmp_path / "demo")]) == 2
    assert "human" in capsys.readouterr().err and not (tmp_path / "demo").exists()


def test_rankings_and_the_model_that_learned_them_are_replaced_only_as_they_were_written(stages, tmp_path, capsys):
    for _ in range(2):
        assert told(tmp_path, 1, "", "") == 0
    for name in ("human.jsonl", "reward-human/config.json", "reward-human/README.md"):
        path = tmp_path / name
        was = path.read_bytes() if path.exists() else None
        path.write_text("mine")
        before = every_byte(tmp_path)
        assert run_command("demo", ["--output_dir", str(tmp_path)]) == 2
        assert path.name in capsys.readouterr().err and every_byte(tmp_path) == before
        path.unlink() if was is None else path.write_bytes(was)
    assert told(tmp_path, 0) == 0


def test_ranking_in_the_terminal_needs_no_extra():
    program = "import sys; sys.modules |= dict.fromkeys(('sqlalchemy', 'evalica', 'starlette')); import rlhf_kit.demo"
    subprocess.run([sys.executable, "-c", program], check=True)
