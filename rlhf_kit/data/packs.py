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
        alone = range(len(sizes)), np.arange(1, len(sizes) + 1)
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

    def pieces(self, lengths: np.ndarray) -> tuple[Sequence[int], np.ndarray, np.ndarray]:
        """(document, the first of its tokens there, size) of every piece that trains something."""
        tokens, step = lengths + np.int32(1), self.length - len(self.start)
        if tokens.min(initial=2) > 1 and tokens.max(initial=0) <= self.length:
            return range(len(tokens)), np.broadcast_to(np.int32(0), len(tokens)), tokens
        later = np.maximum(-(-(tokens - self.length) // step), 0)
        later -= (later > 0) & (tokens - self.length - (later - 1) * step == 1)  # a piece of one token
        counts = later + (tokens > 1)
        documents = np.repeat(np.arange(len(tokens), dtype=np.int32), counts)
        number = np.arange(len(documents)) - np.repeat(counts.cumsum() - counts, counts)
        firsts = np.where(number > 0, self.length + (number - 1) * step, 0).astype(np.int32)
        sizes = np.minimum(tokens[documents] - firsts, np.where(number > 0, step, self.length))
        return documents, firsts, (sizes + (number > 0) * len(self.start)).astype(np.int32)


def _longest_first(sizes: np.ndarray, length: int) -> Iterator[tuple[int, int]]:
    """(place, size), equal sizes in their order; a sort would take 12 bytes each."""
    for size in range(length, 1, -1):
        for place in np.flatnonzero(sizes == size):
            yield int(place), size


def _best_fit(sizes: np.ndarray, length: int) -> tuple[array, np.ndarray]:
    """(places of `sizes` row by row, where each row of them ends) so that no row exceeds `length`; rows and what is in
    them in the order of the input."""
    row_of_piece, rows = array("i", [0]) * len(sizes), 0
    open_rows = [array("i") for _ in range(length + 1)]  # free tokens -> rows with that many
    free_set = 0  # bit f is set when open_rows[f] is not empty: the tightest row that fits is one shift away
    for at, size in _longest_first(sizes, length):
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
    return _by_row(row_of_piece, rows)


def _by_row(row_of_piece: array, rows: int) -> tuple[array, np.ndarray]:
    """The pieces of each row together, the rows by their first piece."""
    numbers, counts, count = array("i", [-1]) * rows, array("i", [0]) * rows, 0
    for at, row in enumerate(row_of_piece):
        if numbers[row] < 0:
            numbers[row] = count
            count += 1
        row_of_piece[at] = numbers[row]
        counts[numbers[row]] += 1
    ends = np.cumsum(counts, dtype=np.int64)
    places = array("q", ends - np.frombuffer(counts, np.int32))
    members = array("i", [0]) * len(row_of_piece)
    for at, row in enumerate(row_of_piece):
        members[places[row]] = at
        places[row] += 1
    return members, ends
