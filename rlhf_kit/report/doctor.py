"""`rlhf-kit doctor RUN`: what is wrong with a PPO run, in plain words, and what to change. Needs no torch.

Reads a run's folder, ended or not: `metrics.jsonl`, and `run.json` if it is there. What is looked for stands in
`symptoms.py`, the words for it stand here.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.inputs import MOST_JSON, parse_json, read_bytes
from rlhf_kit.options import option
from rlhf_kit.report.symptoms import LEAST, OTHER_CHECKS, PPO_CHECKS, Finding, reward_hacking
from rlhf_kit.terminal import say

METRICS, RECORD = "metrics.jsonl", "run.json"
WIDEST_LINE = 110  # of what is printed, where the terminal is wider


@dataclass(frozen=True)
class Remedy:
    """The words for a finding: what it is called, why it matters, what to change, and all of it in a Chinese line."""

    title: str
    why: str
    change: str
    chinese: str


SERIOUS = {  # the worst first
    "not_a_number": Remedy(
        "A number is NaN or infinite",
        "One such update makes all weights NaN: nothing after it counts.",
        "--resume_from_checkpoint from before that step with a lower --learning_rate, or --bf16 false --fp16 false.",
        "出現 NaN 或無限大：從那之前的 checkpoint 繼續，降低 --learning_rate 或改用 float32。",
    ),
    "loss_rising": Remedy(
        "The training loss rises",
        "The model gets worse at the very data it is trained on.",
        "Lower --learning_rate, add --warmup_steps or lower --max_grad_norm; resume from an earlier checkpoint.",
        "訓練損失上升：降低 --learning_rate、加 --warmup_steps，從較早的 checkpoint 繼續。",
    ),
    "reward_hacking": Remedy(
        "Reward hacking: a held-out scorer falls while the reward rises",
        "The policy is not paid for that scorer. If more of it is better, the answers please the reward and nothing "
        "else (over-optimisation; Gao et al. 2022, arXiv:2210.10760).",
        "Keep a checkpoint from where the scorer was best. Raise --kl_coef or set --kl_target, give fewer "
        "--total_episodes, and train the reward model on rankings of this run's answers.",
        "獎勵作弊：獎勵上升，沒參與訓練的評分卻下降。用較早的 checkpoint、提高 --kl_coef，並改進獎勵模型。",
    ),
    "kl_negative": Remedy(
        "KL is negative",
        "KL is never negative; its estimate stays below 0 when tokens are drawn from another distribution than the "
        "one that "
        "scores them (top-k, temperature, dropout, padding that moves positions), or the reference is a wrong one.",
        "Sample and score alike: one --temperature, no top-k or top-p, models in eval() in a loop of your own. Give "
        "the model that the run began from as --ref_model_name_or_path.",
        "KL 是負的：取樣與計分的分布不同（top-k、溫度、dropout），或參考模型不對。兩邊要用同一個分布。",
    ),
    "kl_exploding": Remedy(
        "KL explodes: the policy runs away from the reference",
        "The reward model knows answers like the reference's. So far away its score says little.",
        "Keep an earlier checkpoint. Raise --kl_coef, let --kl_target 6 hold the KL, or stop by --max_kl.",
        "KL 爆增，策略離參考模型太遠：提高 --kl_coef，或用 --kl_target、--max_kl。",
    ),
    "steps_too_large": Remedy(
        "The policy's steps are too large",
        "PPO's objective holds only near the policy that sampled; beyond it the update follows noise.",
        "Lower --learning_rate, add --warmup_steps, use fewer --num_ppo_epochs or a larger --mini_batch_size.",
        "更新步伐太大：降低 --learning_rate、加 --warmup_steps、減少 --num_ppo_epochs。",
    ),
    "never_ends": Remedy(
        "Completions never end by themselves",
        "Every completion gets the same --missing_eos_penalty, so none shows that ending pays: PPO cannot "
        "learn to end.",
        "Check whether the SFT model ends its answers (rlhf-kit sft trains that). If so, raise "
        "--max_completion_length.",
        "回答從不自己結束（EOS）：檢查 SFT 有沒有學會結束；有的話提高 --max_completion_length。",
    ),
    "not_ending_pays": Remedy(
        "Completions that never end score above those that end",
        "Truncated completions score higher even after --missing_eos_penalty: PPO learns not to end.",
        "Raise --missing_eos_penalty above the gap, or penalise unfinished answers in the reward; raise "
        "--max_completion_length where good answers are cut off.",
        "沒講完的回答分數反而比講完的高（已扣 --missing_eos_penalty）：會學成不結束。提高這個懲罰，或提高長度上限。",
    ),
    "reward_falls": Remedy(
        "The reward falls",
        "The policy gets worse at what it is paid for.",
        "Lower --learning_rate, or use fewer --num_ppo_epochs; a --kl_coef far too high also pulls the reward down.",
        "獎勵下降：降低 --learning_rate 或減少 --num_ppo_epochs。",
    ),
}
WARNINGS = {
    "few_ends": Remedy(
        "Many completions are cut off before they end",
        "A truncated completion gets --missing_eos_penalty, and its end is never scored.",
        "Raise --max_completion_length, or begin from an SFT model that answers more briefly.",
        "很多回答沒講完就被截斷：提高 --max_completion_length，或用回答較短的 SFT 模型。",
    ),
    "reward_flat": Remedy(
        "The reward does not rise",
        "The policy does not learn what it is paid for.",
        "Raise --learning_rate, lower --kl_coef, give more --total_episodes; read --log_completions for what scores.",
        "獎勵沒有上升：提高 --learning_rate、降低 --kl_coef 或訓練久一點；看看哪些回答得分高。",
    ),
    "length_rewarded": Remedy(
        "The reward rises with the length",
        "Unless the answers should get longer, length is what is being rewarded.",
        "Read some completions (--log_completions). Rank answers of similar length for the reward model, add a reward "
        "function that charges for tokens (--reward_weights), or raise --kl_coef.",
        "獎勵隨長度上升，可能只是在獎勵長度：讀幾則回答、加長度懲罰，或提高 --kl_coef。",
    ),
    "entropy_collapse": Remedy(
        "The entropy collapses: the policy says one thing only",
        "Where all completions of a prompt are alike, there is nothing left to compare.",
        "Raise --kl_coef or --entropy_coef (0.01 is a starting point), lower --learning_rate, or stop earlier.",
        "熵崩塌，策略只會說同一種話：提高 --kl_coef 或 --entropy_coef，或降低 --learning_rate。",
    ),
    "value_not_learning": Remedy(
        "The value function does not learn",
        "Advantages are then as noisy as the returns, and PPO learns slowly or not at all.",
        "Raise --value_learning_rate or --vf_coef, give --value_warmup_rollouts, or try --value_model reward. Rewards "
        "far larger than 1 need --reward_scaling: --cliprange_value lets values move by small steps only.",
        "價值函數沒學到：提高 --value_learning_rate、用 --value_warmup_rollouts，或換 --value_model。",
    ),
    "nothing_left": Remedy(
        "All completions score alike: nothing left to learn from",
        "PPO learns from differences. Either the task is solved, or the reward cannot tell completions apart.",
        "If it is solved, stop. Otherwise a finer reward function, harder prompts, or a wider --reward_clip.",
        "分數都一樣，沒有東西可學：若不是已經解決，就換更細的獎勵或更難的提示。",
    ),
    "gradient_spikes": Remedy(
        "The gradient spikes",
        "A few batches decide where the weights go; often a divergence begins so.",
        "Lower --learning_rate or --max_grad_norm, add --warmup_steps; look at the data of those steps.",
        "梯度暴衝：降低 --learning_rate 或 --max_grad_norm，並看看那幾步的資料。",
    ),
}
REMEDIES = SERIOUS | WARNINGS


# -- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A run's folder, read: all its logs, and `run.json` (None: it is still running, or was cut off)."""

    folder: Path
    rows: list[dict]
    record: dict | None

    @property
    def is_ppo(self) -> bool:
        return any("kl" in row and "reward" in row for row in self.rows)

    @property
    def logs(self) -> list[dict]:
        """What is judged: logs of rollouts, elsewhere of training; no evaluation, no closing summary."""
        key = "kl" if self.is_ppo else "loss"
        return [row for row in self.rows if key in row]

    @property
    def scorers(self) -> list[str]:
        """Names of the rewards, in the order of `reward_funcs`: so the trainer logs them."""
        return list(dict.fromkeys(key[8:] for row in self.logs for key in row if key.startswith("rewards/")))

    @property
    def held_out(self) -> list[str]:
        """Scorers of weight 0 by `run.json`, which keeps `reward_weights` as given: none given is 1 each."""
        weights = (self.record or {}).get("config", {}).get("reward_weights")
        if not isinstance(weights, list) or len(weights) != len(self.scorers):
            return []
        return [name for name, weight in zip(self.scorers, weights, strict=True) if weight == 0]


def read_run(folder: Path) -> Run:
    """Raises UserError: no such folder, no metrics in it, a line that is no log (the last may be half written)."""
    if not folder.exists():
        near = [item.name for item in folder.parent.iterdir() if item.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"there is no folder {str(folder)!r}.{did_you_mean(folder.name, near)}")
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is a file; give the run's folder, {str(folder.parent)!r}.")
    file = folder / METRICS
    if not file.is_file():
        runs = [folder.parent, *sorted(item for item in folder.iterdir() if item.is_dir())]
        runs = [str(item) for item in runs if (item / METRICS).is_file()]
        hint = f"Perhaps you mean {', '.join(runs[:4])}." if runs else "Give the --output_dir of a run."
        raise UserError(f"{str(folder)!r} has no {METRICS}. {hint}")
    text = read_bytes(file, MOST_JSON).decode("utf-8", errors="replace")
    rows, lines = [], text.splitlines()
    for number, line in enumerate(lines, 1):
        row = _json(line)
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        elif line.strip() and (number < len(lines) or text.endswith("\n")):
            raise UserError(f"line {number} of {str(file)!r} is not a log entry: {line[:60]!r}. Remove the line.")
    if not rows:
        raise UserError(f"{str(file)!r} has no entries yet: try again once the run has logged, or read its output.")
    return Run(folder, rows, read_record(folder))


def read_record(folder: Path) -> dict | None:
    """A run's `run.json`; None where it has none yet. Raises UserError for one that is none."""
    if not (folder / RECORD).is_file():
        return None
    record = _json(read_bytes(folder / RECORD, MOST_JSON).decode("utf-8", errors="replace"))
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise UserError(f"{str(folder / RECORD)!r} is not the record of a run; remove it to judge {METRICS} alone.")
    return record


def _json(text: str) -> object:
    try:
        return parse_json(text)
    except ValueError:
        return None


# -- judging and telling ---------------------------------------------------------------------------------------------


def judge(run: Run, truths: Sequence[str]) -> list[Finding]:
    """All findings, the worst first."""
    checks = PPO_CHECKS if run.is_ppo else OTHER_CHECKS
    findings = [check(run.logs) for check in checks] + [reward_hacking(run.logs, truth) for truth in truths]
    return sorted(filter(None, findings), key=lambda finding: list(REMEDIES).index(finding.name))


def chosen_truths(run: Run, given: Sequence[str]) -> list[str]:
    """The held-out scorers: as given, else by `run.json`. Raises UserError for one that is not logged."""
    names = [name.removeprefix("rewards/") for name in given]
    for name in names:
        if name not in run.scorers:
            reason = f"its scorers are {', '.join(run.scorers)}" if run.scorers else "it logs no rewards"
            raise UserError(f"--truth {name!r} is not in this run: {reason}.{did_you_mean(name, run.scorers)}")
    return names or run.held_out


def notes(run: Run, truths: Sequence[str]) -> list[str]:
    """What could not be judged, and why."""
    lines = []
    if not run.is_ppo:
        lines.append("This is not a PPO run: only NaN, a rising loss and gradient spikes were looked for.")
    if len(run.logs) < LEAST:
        lines.append(
            f"Only {len(run.logs)} logged: too few to look for more than NaN and unended completions. {LEAST} are "
            "needed, 8 better."
        )
    if run.is_ppo and truths:
        lines.append(f"Held out from training, as the truth to compare with: {', '.join(truths)}.")
    elif run.is_ppo:
        why = "no reward function has weight 0" if run.record else f"there is no {RECORD} yet, which has the weights"
        lines.append(
            f"Reward hacking was not looked for: {why}. Name a scorer that the policy is not paid for by --truth NAME "
            f"(logged: {', '.join(run.scorers) or 'none'})."
        )
    return lines


def as_text(run: Run, findings: Sequence[Finding], said: Sequence[str]) -> str:
    width = min(shutil.get_terminal_size().columns, WIDEST_LINE)
    logs = run.logs or run.rows
    kind, what = ("PPO", "rollouts") if run.is_ppo else ((run.record or {}).get("stage", "not PPO"), "logs")
    state = "ended" if run.record else f"no {RECORD}: it is still running, or was cut off"
    lines = [f"{run.folder}: {kind}, {len(run.logs)} {what}, steps {logs[0]['step']}-{logs[-1]['step']}, {state}"]
    lines += [textwrap.fill(note, width) for note in said]
    for number, finding in enumerate(findings, 1):
        remedy = REMEDIES[finding.name]
        lines += ["", f"{number}. {remedy.title} [{'serious 嚴重' if finding.name in SERIOUS else 'warning 注意'}]"]
        for label, words in (("seen", finding.seen), ("why", remedy.why), ("change", remedy.change)):
            indent = {"initial_indent": f"   {label:<8}", "subsequent_indent": " " * 11}
            lines.append(textwrap.fill(words, width, break_on_hyphens=False, **indent))
        lines.append(f"   中文    {remedy.chinese}")
    count = f"{len(findings)} found. 發現 {len(findings)} 個問題。"
    return "\n".join([*lines, "", count if findings else "Nothing found. 沒有發現問題。"])


def as_json(run: Run, findings: Sequence[Finding], said: Sequence[str]) -> str:
    entries = [asdict(one) | {"serious": one.name in SERIOUS} | asdict(REMEDIES[one.name]) for one in findings]
    facts = {"run": str(run.folder), "ppo": run.is_ppo, "ended": run.record is not None, "logs": len(run.logs)}
    return json.dumps(facts | {"notes": list(said), "findings": entries}, indent=2, ensure_ascii=False)


@dataclass
class DoctorOptions:
    run: Path | None = option(None, "The run's output folder. 訓練的輸出資料夾", positional="RUN", required=True)
    truth: list[str] = option(
        [],
        "A logged reward that the policy is not paid for; default: those of weight 0 in run.json. 沒參與訓練的評分",
        repeats=True,
    )
    json: bool = option(False, "Print the findings as JSON.")


def run(options: DoctorOptions) -> int:
    """`rlhf-kit doctor`; returns 0 where nothing was found, else 1. Raises UserError."""
    judged = read_run(options.run)
    truths = chosen_truths(judged, options.truth)
    findings = judge(judged, truths)
    shown = as_json if options.json else as_text
    say(shown(judged, findings, notes(judged, truths)))
    return 1 if findings else 0
