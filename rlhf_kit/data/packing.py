"""Documents packed into rows of one length, without one reading the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from rlhf_kit.errors import UserError

IGNORED = -100


def pack(
    documents: Iterable[Sequence[int]], length: int, eos_token_id: int, start: Sequence[int] = ()
) -> list[dict[str, list[int]]]:
    """Rows of at most `length` tokens: `input_ids`, `position_ids` (from 0 in each document), `labels`.

    EOS is added to each document. A document of n tokens (EOS counted) longer than `length` is cut into
    p = ceil(n / length) consecutive pieces, each a document of its own. The first token of a piece has no label
    (nothing before it predicts it), so the document trains n - p tokens. A piece of one token would train nothing and
    is left out. Where documents begin with `start` (BOS), so does each piece, and neither it nor the first token of a
    later piece has a label. Best fit decreasing: each piece goes, longest first, into the fullest row that has room.
    Same input, same rows.
    Raises UserError if `length` < 2 behind `start`.
    """
    if length < 2 + len(start):
        raise UserError(f"Rows of {length} token(s) cannot be packed: a row needs {2 + len(start)} at least.")
    pieces = list(_pieces(documents, length, eos_token_id, list(start)))
    rows = _best_fit([len(ids) for ids, _ in pieces], length)
    positions = list(range(length))
    return [_row([pieces[at] for at in row], positions) for row in rows]


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


def _row(pieces: Sequence[tuple[list[int], int]], positions: Sequence[int]) -> dict[str, list[int]]:
    row: dict[str, list[int]] = {"input_ids": [], "position_ids": [], "labels": []}
    for ids, unlabelled in pieces:
        row["input_ids"] += ids
        row["position_ids"] += positions[: len(ids)]
        row["labels"] += [IGNORED] * unlabelled + ids[unlabelled:]
    return row


@dataclass(frozen=True)
class PackedCollator:
    """Packed rows -> `input_ids`, `position_ids`, `labels`, each (B, T) int64, right-padded to the longest row.

    There is no `attention_mask`: given `position_ids` alone, transformers >= 5 lets each document attend to itself
    only. It does so only without a key-value cache: call the model with `use_cache=False` (Trainer's default).
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        # Position 0 at every padding token makes each a document of its own, which nothing real attends to.
        fill = {"input_ids": self.pad_token_id, "position_ids": 0, "labels": IGNORED}
        return {
            name: torch.tensor([[*row[name], *[value] * (longest - len(row[name]))] for row in rows])
            for name, value in fill.items()
        }
