"""How a person's ranking compares with the truth of the embedded world, and with its simulated labeler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

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
        true, liked = (alike(completions, ranks, partial(judge, prompt)) for judge in (truth, labeler_utility))
    except ValueError:
        return None
    return Compared(truth_pairs=true[1], truth_alike=true[0], labeler_pairs=liked[1], labeler_alike=liked[0])


def alike(completions: Sequence[str], ranks: Sequence[int], utility: Callable[[str], float]) -> tuple[int, int]:
    """(pairs that ranks and utility order alike, pairs that both order): a higher utility is better.

    >>> alike(["a", "bb", "ccc"], [1, 2, 2], len)
    (0, 2)
    """
    pairs = [
        (rank_a - rank_b) * round(utility(b) - utility(a), 6)  # -0.7 + 0.3 is not -0.4, and as good
        for (a, rank_a), (b, rank_b) in combinations(zip(completions, ranks, strict=True), 2)
    ]
    return sum(pair > 0 for pair in pairs), sum(pair != 0 for pair in pairs)


def compare_decision(task: Any, content: Mapping[str, Any]) -> Compared | None:
    """Of a store's task and the content of a decision; None where it is no ranking, or not of the world."""
    if "ranks" not in content:
        return None
    ranks = [content["ranks"][str(answer.id)] for answer in task.answers]
    return compare(task.prompt, [answer.text for answer in task.answers], ranks)
