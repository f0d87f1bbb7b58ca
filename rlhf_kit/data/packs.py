"""Documents packed into rows of one length: which piece goes into which row, by their sizes alone."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_kit.data.packing import row_of
from rlhf_kit.data.tokens import Tokens
from rlhf_kit.errors import UserError


class Packed(Sequence):
    """The rows of `pack`, each put together when it is asked for.

    `tokens`: of all rows.
    """

    def __init__(self, documents: Tokens, cut: Cut, apart: bool):
        self.documents, self.cut = documents, cut
        self.piece_documents, self.piece_firsts, sizes = cut.pieces(documents.lengths())
        self.tokens = int(sizes.sum())
        alone = np.arange(len(sizes), dtype=np.int32), np.arange(1, len(sizes) + 1)
        self.members, self.ends = alone if apart else _best_fit(sizes, cut.length)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return [self[each] for each in range(len(self))[at]]
        at = range(len(self))[at]
        members = self.members[self.ends[at - 1] if at else 0 : self.ends[at]]
        return row_of([self._piece(piece) for piece in members])

    def _piece(self, piece: int) -> tuple[list[int], int]:
        """(ids, how many of the first have no label)"""
        document, first = int(self.piece_documents[piece]), int(self.piece_firsts[piece])
        before = self.cut.start if first else []
        last = first + self.cut.length - len(before)
        ids = before + self.documents.read(document, first, last)
        if last > self.documents.size(document):
            ids.append(self.cut.eos_token_id)
        return ids, 1 + len(before)


def pack(
    documents: Tokens | Iterable[Sequence[int]],
    length: int,
    eos_token_id: int,
    start: Sequence[int] = (),
    apart: bool = False,
) -> Packed:
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
    documents = documents if isinstance(documents, Tokens) else Tokens.of(documents)
    return Packed(documents, Cut(length, eos_token_id, list(start)), apart)


@dataclass(frozen=True)
class Cut:
    """How documents become pieces: of at most `length` tokens, ended by EOS, later ones begun with `start`."""

    length: int
    eos_token_id: int
    start: list[int]

    def pieces(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(document, the first of its tokens there, size) of every piece that trains something."""
        documents, firsts, sizes = array("i"), array("i"), array("i")
        skipped = len(self.start)
        for document, tokens in enumerate(_one_by_one(lengths)):
            for first in [0, *range(self.length, tokens + 1, self.length - skipped)]:
                before = skipped if first else 0
                size = min(tokens + 1 - first, self.length - before) + before
                if size > 1 + before:
                    documents.append(document)
                    firsts.append(first)
                    sizes.append(size)
        nowhere_cut = np.broadcast_to(np.int32(0), len(firsts))
        return np.array(documents), np.array(firsts) if any(firsts) else nowhere_cut, np.array(sizes)


def _one_by_one(numbers: np.ndarray, at_once: int = 1000) -> Iterator[int]:
    """As Python's, of which no more than some are there."""
    for at in range(0, len(numbers), at_once):
        yield from numbers[at : at + at_once].tolist()


def _best_fit(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(places of `sizes` row by row, where each row of them ends) so that no row exceeds `length`; rows and what is in
    them in the order of the input."""
    row_of_piece = np.zeros(len(sizes), np.int32)
    rows = 0
    open_rows = [array("i") for _ in range(length + 1)]  # free tokens -> rows with that many
    free_set = 0  # bit f is set when open_rows[f] is not empty: the tightest row that fits is one shift away
    for at in _one_by_one(np.argsort(-sizes, kind="stable").astype(np.int32)):  # equal sizes stay in order
        size = int(sizes[at])
        fitting = free_set >> size
        if fitting:
            free = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[free].pop()
            if not open_rows[free]:
                free_set &= ~(1 << free)
        else:
            free, row = length, rows
            rows += 1
        row_of_piece[at] = row
        left = free - size
        if left > 1:  # a piece has two tokens at least
            open_rows[left].append(row)
            free_set |= 1 << left
    firsts = np.full(rows, len(sizes), np.int32)
    np.minimum.at(firsts, row_of_piece, np.arange(len(sizes), dtype=np.int32))
    rank = np.empty(rows, np.int32)
    rank[np.argsort(firsts)] = np.arange(rows, dtype=np.int32)
    row_of_piece = rank[row_of_piece]
    members = np.argsort(row_of_piece, kind="stable").astype(np.int32)
    return members, np.bincount(row_of_piece, minlength=rows).cumsum()
