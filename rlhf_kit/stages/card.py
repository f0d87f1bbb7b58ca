"""The card of a reward model, `README.md` in its folder: what it learnt from, how far to trust it, how to use it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rlhf_kit.data.hub import is_local, split_revision
from rlhf_kit.escaping import markdown
from rlhf_kit.eval.reward.page import HEADLINES, length_sentence
from rlhf_kit.models.weights import located
from rlhf_kit.stages.arguments import Settings

if TYPE_CHECKING:
    from rlhf_kit.reward import RewardTrainer

USE = """```python
from rlhf_kit.models.checkpoints import load_reward_model, load_tokenizer
from rlhf_kit.models.heads import score_texts

model, tokenizer = load_reward_model({folder}), load_tokenizer({folder}, needs_eos=False)
print(score_texts(model, tokenizer, ["Which river is the longest?"] * 2, ["The Nile.", "Yes."]))
```"""


def reward_card(trainer: RewardTrainer, settings: Settings, record: dict, measured: dict | None) -> str:
    """The card as Markdown.

    Args:
        record: what `run.json` holds. measured: of `evaluate_reward` on the evaluation data, if there is any.
    """
    args, data = trainer.args, settings.data
    header = {
        "base_model": located(settings.model.model_name_or_path),
        "pipeline_tag": "text-classification",
        "library_name": "transformers",
        "tags": ["reward-model", "rlhf_kit"],
    }
    counts = trainer.data_counts.get("train", {})
    rows = [f"* {markdown(what)}: {count:,}" for what, count in counts.items() if count]
    lines = [*_head(header), "# A reward model 獎勵模型", ""]
    lines += [
        f"It scores answers: a higher score means that the labelers of {markdown(data.dataset_name)} "
        "would prefer the answer. "
        f"分數越高，標註者越可能喜歡。{_zero(settings)} Only differences between scores are meaningful, not their "
        "absolute values."
    ]
    lines += ["", "## Trained on 訓練資料", "", *rows]
    lines += [
        f"* loss {args.loss_type}, learning rate {args.learning_rate:g}, {record['steps']} steps, seed {args.seed}, "
        f"{record['seconds']:.0f} s"
    ]
    lines += ["", "## Measured 評測", "", *_measured(data.eval_dataset_name, measured)]
    lines += ["", "## Use 用法", "", USE.format(folder=repr(args.output_dir).replace("<", r"\x3c")), ""]
    lines += [
        "Plain transformers gives the same scores: the last token of prompt + answer, without the end-of-text token.",
        "",
        "## Limits 限制",
        "",
        "It knows these labelers, their prompts and their faults, and nothing else. A policy trained against it finds "
        "what it overrates: keep a KL penalty, and look at the answers. "
        "它只懂這批標註者；拿它訓練時，請保留 KL 懲罰並看看回答。",
    ]
    return "\n".join(lines) + "\n"


def stage_card(settings: Settings, record: dict) -> str:
    """The card of what a stage has made, for the hub.

    Args:
        record: what `run.json` holds.
    """
    model, data = settings.model, settings.data
    is_adapter = model.use_peft and not model.merge_adapter
    header = {
        "pipeline_tag": "fill-mask" if settings.stage == "mlm" else "text-generation",
        "library_name": "peft" if is_adapter else "transformers",
        "tags": ["rlhf_kit", settings.stage],
    }
    if model.config_overrides is None and not is_local(model.model_name_or_path):
        header["base_model"] = located(model.model_name_or_path)
    sources = [source for source in (data.dataset_name, data.eval_dataset_name) if source and "@" in source]
    if sources:
        header["datasets"] = sorted({split_revision(source)[0] for source in sources})
    figures = [f"| {name} | {value:.4g} |" for name, value in record["metrics"].items() if value is not None]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [*_head(header), f"# {settings.stage}, by rlhf_kit", ""]
    lines += [
        f"{markdown(model.model_name_or_path)} trained by the stage {settings.stage} on {markdown(data.dataset_name)}"
    ]
    lines[-1] += f": {record['steps']} steps, seed {record['seed']}, {record['seconds']:.0f} s. 由 rlhf_kit 訓練。"
    lines += ["", "| | |", "| --- | --- |", *figures, "", f"Made with {versions}. All options given: `run.json`."]
    return "\n".join(lines) + "\n"


def merged_card(adapter: str, base: str) -> str:
    """The card of a plain model that was a base and an adapter."""
    return f"""---
base_model: {_quoted(base)}
library_name: transformers
tags: ["rlhf_kit"]
---

# A merged model 合併後的模型

{markdown(base)} with the LoRA adapter {markdown(adapter)} merged in: a plain model, which loads without peft.
LoRA 已併入原模型，不需要 peft 即可載入。
"""


def _head(header: dict) -> list[str]:
    """The header, and the line below it."""
    return ["---", *(f"{name}: {_quoted(value)}" for name, value in header.items()), "---", ""]


def _quoted(value: object) -> str:
    """As JSON, which YAML reads, and without a tag's beginning for who shows the header as text."""
    return json.dumps(value).replace("<", r"\u003c")


def _zero(settings: Settings) -> str:
    if not settings.training.calibrate:
        return "Scores are not calibrated: they have no fixed scale."
    if settings.extra.calibration_policy:
        policy = markdown(settings.extra.calibration_policy)
        return f"The answers of {policy} score 0 on average, with standard deviation 1."
    if settings.extra.calibration_dataset_name:
        return f"The demonstrations of {markdown(settings.extra.calibration_dataset_name)} score 0 on average."
    return "The training answers score 0 on average, with standard deviation 1."


def _measured(source: str | None, measured: dict | None) -> list[str]:
    if measured is None:
        return ["Nothing was held out to measure it on (`--eval_dataset_name`). 沒有保留測試資料。"]
    rows = [f"On {markdown(source)}, with 95 % intervals over prompts:", "", "| | | |", "| --- | --- | --- |"]
    for name, (english, chinese, form) in HEADLINES[measured["kind"]].items():
        low_high = measured["intervals"][name]
        between = f"{low_high[0]:{form}} to {low_high[1]:{form}}" if low_high else ""
        rows.append(f"| {english} {chinese} | {measured['scores'][name]:{form}} | {between} |")
    ceiling = measured["ceiling"]
    if ceiling and ceiling["ceiling"] is not None:
        rows += ["", f"The labelers' own agreement allows {ceiling['ceiling']:.3f}. 標註者一致性的上限"]
    return [*rows, "", *length_sentence(measured)]
