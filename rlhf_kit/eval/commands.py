"""The tasks of `rlhf-kit eval NAME`: what each measures, and where it is."""

from __future__ import annotations

from typing import Any

from rlhf_kit.errors import UserError
from rlhf_kit.references import imported, load_reference

# name -> what it measures, in English and Chinese; the task, whose options are `module:ClassArguments`
TASKS: dict[str, tuple[str, str, str]] = {
    "lambada": (
        "LAMBADA: predict the last word of a passage",
        "猜段落的最後一個詞",
        "rlhf_kit.eval.text.lambada:Lambada",
    ),
    "perplexity": (
        "Perplexity: how well a model predicts a text",
        "困惑度",
        "rlhf_kit.eval.text.perplexity:Perplexity",
    ),
    "coqa": (
        "CoQA: every turn of every dialogue, by the official scorer",
        "回答 CoQA 對話的每一輪，官方計分",
        "rlhf_kit.eval.coqa.task:CoQA",
    ),
    "squad": (
        "SQuAD 2.0 by generation: questions with and without an answer in the passage",
        "閱讀測驗，含無法回答的問題",
        "rlhf_kit.eval.squad:Squad",
    ),
    "mc": ("Multiple choice by likelihood, as TruthfulQA's MC1 and MC2", "選擇題：真話可能嗎", "rlhf_kit.eval.mc:MC"),
    "icl": (
        "Does a model learn from examples in its prompt, and does its size help?",
        "情境學習：提示裡的範例有用嗎？模型越大越好嗎？",
        "rlhf_kit.eval.icl.task:ICL",
    ),
    "tldr": (
        "Zero-shot summaries after TL;DR:, scored by ROUGE",
        "在 TL;DR: 之後寫摘要",
        "rlhf_kit.eval.text.tldr:TLDR",
    ),
    "extractive": (
        "Answers that are spans of a passage (SQuAD, XQuAD, MLQA, DRCD, CMRC), after fine-tuning or without",
        "抽取式問答，可先微調",
        "rlhf_kit.eval.extractive.task:Extractive",
    ),
    "reward": (
        "Does a reward model rank held-out answers as people do?",
        "獎勵模型的排序與人一致嗎？",
        "rlhf_kit.eval.reward.task:Reward",
    ),
}


def task_named(name: str) -> Any:
    """The class of a task of TASKS, or of one's own by `module:Class`. Raises UserError where there is none."""
    if name in TASKS:
        return imported(TASKS[name][2])
    kind = load_reference(name, "task")
    if not hasattr(kind, "Arguments"):
        raise UserError(f"task {name!r} is not a subclass of rlhf_kit.eval.task.Task, with its `Arguments`.")
    return kind
