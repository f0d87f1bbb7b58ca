"""What a labeler decides of answers: ranks with ties, ratings, flags, thumbs, a comment. InstructGPT's fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf_kit.data.labels.schema import RANKED, SKIPPED, THUMB, THUMBS, UNRANKABLE
from rlhf_kit.data.orders import dense

LIKERT = range(1, 8)  # of the overall quality
FLAGS = {  # Table 3 of InstructGPT (arXiv:2203.02155): name -> (English, Chinese)
    "fails_instruction": ("Fails to follow the correct instruction or task", "沒有照指示做"),
    "inappropriate": ("Inappropriate for a customer assistant", "不適合助理的身分"),
    "hallucination": ("Hallucination", "憑空捏造"),
    "satisfies_constraint": ("Satisfies the constraint of the instruction", "符合指示裡的限制"),
    "sexual": ("Contains sexual content", "含色情內容"),
    "violent": ("Contains violent content", "含暴力內容"),
    "encourages_harm": ("Encourages or fails to discourage violence, abuse, terrorism or self-harm", "助長暴力或自傷"),
    "denigrates": ("Denigrates a protected class", "貶低特定族群"),
    "harmful_advice": ("Gives harmful advice", "給了有害的建議"),
    "opinion": ("Expresses an opinion", "表達了意見"),
    "moral_judgment": ("Expresses a moral judgment", "做了道德評斷"),
}
COMMENT = 10_000  # characters
# What a decision of each kind may hold.
_FIELDS = {
    RANKED: {"ranks", "ratings", "flags", "comment"},
    THUMB: {"label", "ratings", "flags", "comment"},
    UNRANKABLE: {"ratings", "flags", "comment"},
    SKIPPED: {"reason"},
}


def content_faults(kind: str, task: str, answers: Sequence[str], content: Mapping[str, Any]) -> list[str]:
    """What is wrong with a decision on these answers (their ids as text): all of it.

    Args:
        kind: of the decision; task: kind of the task.
    """
    faults = [f"`{name}` is not part of it" for name in content if name not in _FIELDS[kind]]
    if kind != SKIPPED and (kind == THUMB) != (task == THUMBS):
        faults.append(f"a task of the kind {task!r} does not take it")
    if kind == RANKED:
        faults += _rank_faults(content.get("ranks"), answers)
    if kind == THUMB and not isinstance(content.get("label"), bool):
        faults.append("`label` must be true or false")
    faults += _by_answer("ratings", content, answers, _is_rating, "1 to 7")
    faults += _by_answer("flags", content, answers, _is_flags, f"a list of different ones of {', '.join(FLAGS)}")
    for name in ("comment", "reason"):
        if not isinstance(content.get(name, ""), str) or len(content.get(name, "")) > COMMENT:
            faults.append(f"`{name}` must be text of at most {COMMENT:,} characters")
    return faults


def _rank_faults(ranks: Any, answers: Sequence[str]) -> list[str]:
    if not isinstance(ranks, Mapping) or set(ranks) != set(answers):
        return ["`ranks` must have one for each answer"]
    values = list(ranks.values())
    if not all(type(rank) is int for rank in values) or dense(values) != values:
        return ["`ranks` must be whole numbers from 1 without a gap, equal for a tie"]
    return []


def _by_answer(
    name: str, content: Mapping[str, Any], answers: Sequence[str], fits: Callable[[Any], bool], needed: str
) -> list[str]:
    values = content.get(name, {})
    if not isinstance(values, Mapping) or not set(values) <= set(answers):
        return [f"`{name}` must be by answer"]
    return [f"`{name}` of answer {answer} must be {needed}" for answer, value in values.items() if not fits(value)]


def _is_rating(value: Any) -> bool:
    return type(value) is int and value in LIKERT


def _is_flags(value: Any) -> bool:
    return isinstance(value, list) and all(name in list(FLAGS) and value.count(name) == 1 for name in value)
