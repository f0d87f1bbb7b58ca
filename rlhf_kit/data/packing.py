"""Rows of documents side by side, without one reading the other: `packs.pack` chooses which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

IGNORED = -100


def row_of(pieces: Sequence[tuple[list[int], int]]) -> dict[str, list[int]]:
    """Pieces side by side as a row of `pack`: (ids, how many of the first have no label) of each."""
    row: dict[str, list[int]] = {"input_ids": [], "position_ids": [], "labels": []}
    for ids, unlabelled in pieces:
        row["input_ids"] += ids
        row["position_ids"] += range(len(ids))
        row["labels"] += [IGNORED] * unlabelled + ids[unlabelled:]
    return row


@dataclass(frozen=True)
class PackedCollator:
    """Rows of `pack` -> `input_ids`, `labels` and what keeps documents apart, each (B, T) int64.

    Args:
        arrangement: how they are kept apart; which of these a model heeds, `models.preflight` tries.
            "packed": by `position_ids`, rows right-padded to the longest. There is no `attention_mask`: given
            `position_ids` alone, transformers >= 5 lets each document attend to itself only, in models that use its
            masks. It does so only without a key-value cache: call the model with `use_cache=False`, as Trainer does.
            "flattened": the same in one long row (1, sum of lengths), as flash attention needs it.
            "apart": rows of one document, right-padded, with an `attention_mask`.
    """

    pad_token_id: int
    arrangement: str = "packed"

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        # Position 0 at every padding token makes each a document of its own, which nothing real attends to.
        fill = {"input_ids": self.pad_token_id, "position_ids": 0, "labels": IGNORED, "attention_mask": 0}
        if self.arrangement == "apart":
            names = ("input_ids", "attention_mask", "labels")
            rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
        else:
            names = ("input_ids", "position_ids", "labels")
        if self.arrangement == "flattened":
            rows = [{name: [token for row in rows for token in row[name]] for name in names}]
        longest = max(len(row["input_ids"]) for row in rows)
        return {
            name: torch.tensor([[*row[name], *[fill[name]] * (longest - len(row[name]))] for row in rows])
            for name in names
        }
