"""Documents packed into rows of one length, without one reading the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from rlhf_kit.errors import UserError

IGNORED = -100


def pack(
    documents: Iterable[Sequence[int]], length: int, eos_token_id: int, start: Sequence[int] = (), apart: bool = False
) -> list[dict[str, list[int]]]:
    """Rows of at most `length` tokens: `input_ids`, `position_ids` (from 0 in each document), `labels`.

    EOS is added to each document. A document of n tokens (EOS counted) longer than `length` is cut into
    p = ceil(n / length) consecutive pieces, each a document of its own. The first token of a piece has no label
    (nothing before it predicts it), so the document trains n - p tokens. A piece of one token would train nothing and
    is left out. Where documents begin with `start` (BOS), so does each piece, and neither it nor the first token of a
    later piece has a label. Best fit decreasing: each piece goes, longest first, into the fullest row that has room;
    with `apart` each has a row of its own. Same input, same rows.
    Raises UserError if `length` < 2 behind `start`.
    """
    if length < 2 + len(start):
        raise UserError(f"Rows of {length} token(s) cannot be packed: a row needs {2 + len(start)} at least.")
    pieces = list(_pieces(documents, length, eos_token_id, list(start)))
    alone = [[at] for at in range(len(pieces))]
    rows = alone if apart else _best_fit([len(ids) for ids, _ in pieces], length)
    return [row_of([pieces[at] for at in row]) for row in rows]


def _pieces(
    documents: Iterable[Sequence[int]], length: int, eos_token_id: int, start: list[int]
) -> Iterator[tuple[list[int], int]]:
    """(ids, how many of the first have no label) of every piece that trains something."""
    for document in documents:
        ids, skipped = [*document, eos_token_id], len(start)
        if len(ids) > 1:
            yield ids[:length], 1
        for at in range(length, len(ids), length - skipped):
            piece = start + ids[at : at + length - skipped]
            if len(piece) > 1 + skipped:
                yield piece, 1 + skipped


def _best_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Indices of `sizes` grouped so that no group exceeds `length`; groups and members in the order of the input."""
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(length + 1)]  # free tokens -> rows with that many
    free_set = 0  # bit f is set when open_rows[f] is not empty: the tightest row that fits is one shift away
    for at in sorted(range(len(sizes)), key=lambda i: -sizes[i]):  # stable: equal sizes stay in order
        size = sizes[at]
        fitting = free_set >> size
        if fitting:
            free = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[free].pop()
            if not open_rows[free]:
                free_set &= ~(1 << free)
        else:
            free, row = length, len(rows)
            rows.append([])
        rows[row].append(at)
        left = free - size
        if left > 1:  # a piece has two tokens at least
            open_rows[left].append(row)
            free_set |= 1 << left
    return sorted(sorted(row) for row in rows)


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
