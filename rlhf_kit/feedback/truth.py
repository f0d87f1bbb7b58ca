"""How a person's ranking compares with the truth of the embedded world, and with its simulated labeler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_kit.data.labelers import alike
from rlhf_kit.world import labeler_utility, truth


@dataclass(frozen=True)
class Compared:
    """Pairs that the person and the truth (or the simulated labeler without its noise) both order, and of these those
    ordered alike."""

    truth_pairs: int
    truth_alike: int
    labeler_pairs: int
    labeler_alike: int

    def __str__(self) -> str:
        return (
            f"As the truth orders them 與真相一致: {self.truth_alike} of {self.truth_pairs} pairs. "
            f"As the simulated labeler 與模擬標註者一致: {self.labeler_alike} of {self.labeler_pairs}."
        )


def compare(prompt: Any, completions: Sequence[str], ranks: Sequence[int]) -> Compared | None:
    """A ranking (1 = best) beside the truth; None where the prompt is none of the world's."""
    try:
        true, liked = (
            in_order(ranks, [judge(prompt, text) for text in completions]) for judge in (truth, labeler_utility)
        )
    except ValueError:
        return None
    return Compared(truth_pairs=true[1], truth_alike=true[0], labeler_pairs=liked[1], labeler_alike=liked[0])


def in_order(ranks: Sequence[int], utilities: Sequence[float]) -> tuple[int, int]:
    """(pairs that ranks and utilities order alike, pairs that both order): a higher utility is better.

    >>> in_order([1, 2, 2], [1.0, 2.0, 3.0])
    (0, 2)
    """
    return alike(ranks, [-round(value, 6) for value in utilities])  # -0.7 + 0.3 is not -0.4, and as good


def compare_decision(task: Any, content: Mapping[str, Any]) -> Compared | None:
    """Of a store's task and the content of a decision; None where it is no ranking, or not of the world."""
    if "ranks" not in content:
        return None
    ranks = [content["ranks"][str(answer.id)] for answer in task.answers]
    return compare(task.prompt, [answer.text for answer in task.answers], ranks)
