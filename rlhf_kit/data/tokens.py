"""Rows of token ids in Arrow's buffers, 4 bytes a token, whether these lie in memory or in a file."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow

from rlhf_kit.data.rows import Filed
from rlhf_kit.data.store import stored, write

IDS = datasets.List(datasets.Value("int32"))


def tokens_of(
    key: Callable[[], str] | None,
    name: str,
    features: Mapping[str, Any],
    tokenize: Callable[[dict], Iterable[Mapping[str, Any]]],
) -> tuple[datasets.Dataset, dict]:
    """(the rows that `tokenize(about)` gives, what it has put into `about`): in memory, or with a `key` stored."""
    features = datasets.Features(features)
    if key is not None:

        def make(path: Path) -> dict:
            about: dict = {}
            write(path, tokenize(about), features)
            return about

        return stored(key(), f"{name}, as tokens", make)
    about: dict = {}
    rows = list(tokenize(about))
    columns = {column: [row[column] for row in rows] for column in features}
    return datasets.Dataset.from_dict(columns, features=features), about


def count_of(dataset: datasets.Dataset, column: str = "input_ids") -> int:
    """Tokens of all rows, of lists of rows too."""
    total = 0
    for chunk in _chunks(dataset, column):
        while pyarrow.types.is_list(chunk.type):
            chunk = chunk.flatten()
        total += len(chunk)
    return total


def _chunks(dataset: datasets.Dataset, column: str) -> list[pyarrow.Array]:
    """Of the rows as they are chosen and ordered."""
    if dataset._indices is not None:
        dataset = dataset.flatten_indices()
    return dataset.data.column(column).chunks


class Lengths(Filed):
    """Tokens of each text of each row: lists of numbers, kept in 4 bytes a text and 8 a row."""

    def __init__(self, rows: Iterable[Iterable[int]]):
        self._tokens, self._ends = array("i"), array("q", [0])
        for row in rows:
            self._tokens.extend(row)
            self._ends.append(len(self._tokens))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def at(self, place: int) -> list[int]:
        return self._tokens[self._ends[place] : self._ends[place + 1]].tolist()


class Tokens(Filed):
    """The rows of a column of token ids. Pickled, for another process, by the file that they lie in."""

    def __init__(self, dataset: datasets.Dataset, column: str = "input_ids"):
        self.dataset, self.column = dataset, column
        self._open()

    def _open(self) -> None:
        chunks = [chunk for chunk in _chunks(self.dataset, self.column) if len(chunk)]
        self._parts = [(chunk.offsets.to_numpy(), chunk.values.to_numpy()) for chunk in chunks]
        self._ends = np.cumsum([len(chunk) for chunk in chunks])

    def __getstate__(self) -> dict:
        return {"dataset": self.dataset, "column": self.column}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._open()

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> Tokens:
        features = datasets.Features({"input_ids": IDS})
        return cls(datasets.Dataset.from_dict({"input_ids": [list(row) for row in rows]}, features=features))

    def lengths(self) -> np.ndarray:
        return np.concatenate([np.empty(0, np.int32), *(np.diff(offsets) for offsets, _ in self._parts)])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _place(self, row: int) -> tuple[np.ndarray, int, int]:
        part = int(np.searchsorted(self._ends, row, side="right"))
        offsets, values = self._parts[part]
        at = row - (int(self._ends[part - 1]) if part else 0)
        return values, int(offsets[at]), int(offsets[at + 1])

    def size(self, row: int) -> int:
        _, first, last = self._place(row)
        return last - first

    def read(self, row: int, start: int, stop: int) -> list[int]:
        """Tokens `start` to `stop` of a row, as far as it has them."""
        values, first, last = self._place(row)
        return values[first + start : min(first + stop, last)].tolist()

    def at(self, place: int) -> list[int]:
        values, first, last = self._place(place)
        return values[first:last].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        for offsets, values in self._parts:
            for first, last in zip(offsets[:-1], offsets[1:], strict=True):
                yield values[first:last].tolist()
