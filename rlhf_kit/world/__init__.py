"""The embedded world: a seeded, bilingual closed world whose truth is computable.

`rows(kind, split, size, seed)` yields plain rows of every kind of data the kit reads;
`truth(prompt, completion)` judges any answer.
"""

from pathlib import Path

from .judging import Judgement, judge, labeler_utility, truth, truth_reward
from .kinds import KINDS, accuracy_ceiling, describe, rows

BASE = Path(__file__).parent / "base"
"""Folder of the base GPT-2 that was pre-trained on rows("text")."""

__all__ = [
    "BASE", "KINDS", "Judgement", "accuracy_ceiling", "describe", "judge", "labeler_utility", "rows", "truth",
    "truth_reward",
]  # fmt: skip
