"""Rows that are too many for the memory: in a file, and read from there each time they are asked for.

Whoever reads rows takes a `Sequence`, goes through it as often as he needs, and keeps none. Of a small source it is a
list; of one of more than `IN_MEMORY` bytes a `Filed` one, with the same rows in the same order.
"""

from __future__ import annotations

import io
import mmap
import pickle
import sys
import tempfile
from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_kit.errors import UserError
from rlhf_kit.references import imported
from rlhf_kit.storage import write_fault

IN_MEMORY = 2**24  # bytes of a source; as Python's objects they take some four times as many
AT_ONCE = 1000  # rows that are decoded or written together
Holder = Callable[[Iterable[Any]], Sequence[Any]]  # what keeps rows as they come: `list`, or `Spooled`


class Filed(Sequence):
    """Rows of which none is kept. A subclass has `__len__` and `at`, and may have a faster `some` and `__iter__`."""

    @abstractmethod
    def at(self, place: int) -> Any:
        """The row at a place from 0."""

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return self.some(range(len(self))[place])
        return self.at(range(len(self))[place])

    def some(self, places: range) -> list:
        """The rows at these places."""
        return [self.at(place) for place in places]

    def __iter__(self) -> Iterator[Any]:
        return map(self.at, range(len(self)))


class Spooled(Filed):
    """Python's objects as they are, in files without a name: a kill leaves nothing of them.

    Raises UserError where there is no room for them.
    """

    def __init__(self, rows: Iterable[Any]):
        with writing(folder()), _unnamed() as content, _unnamed() as ends:
            end, places = 0, array("Q", [0])
            for row in rows:
                end += content.write(pickle.dumps(row, pickle.HIGHEST_PROTOCOL))
                places.append(end)
                if len(places) == AT_ONCE:
                    ends.write(places)
                    del places[:]
            ends.write(places)
            self._content, self._ends = _mapped(content), _mapped(ends).cast("Q")

    def __len__(self) -> int:
        return len(self._ends) - 1

    def at(self, place: int) -> Any:
        return pickle.loads(self._content[self._ends[place] : self._ends[place + 1]])


def _unnamed() -> io.BufferedRandom:
    folder().mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder())


def _mapped(file: io.BufferedRandom) -> memoryview:
    file.flush()
    is_empty = file.seek(0, io.SEEK_END) == 0
    return memoryview(b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class Made(Filed):
    """Rows made of others one by one, each time anew."""

    def __init__(self, make: Callable[[Any], Any], rows: Filed):
        self.make, self.rows = make, rows

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, place: int) -> Any:
        return self.make(self.rows[place])

    def some(self, places: range) -> list:
        return [self.make(row) for row in self.rows.some(places)]

    def __iter__(self) -> Iterator[Any]:
        return map(self.make, self.rows)


class Chosen(Filed):
    """Some rows of others, by their places in rising order."""

    def __init__(self, rows: Sequence[Any], places: Sequence[int]):
        self.rows, self.places = rows, places

    def __len__(self) -> int:
        return len(self.places)

    def at(self, place: int) -> Any:
        return self.rows[self.places[place]]


def made(make: Callable[[Any], Any], rows: Sequence[Any]) -> Sequence[Any]:
    """`make(row)` of every row."""
    return Made(make, rows) if isinstance(rows, Filed) else [make(row) for row in rows]


def chosen(rows: Sequence[Any], places: Sequence[int]) -> Sequence[Any]:
    """The rows at these places."""
    return [rows[at] for at in places] if isinstance(rows, list) else Chosen(rows, places)


def holder(is_large: bool) -> Holder:
    return Spooled if is_large else list


def is_large(dataset: Any) -> bool:
    """Whether this is a data set of more bytes than are kept as Python's objects."""
    known = sys.modules.get("datasets")  # seconds to import, and what reads no data set does without
    return known is not None and isinstance(dataset, known.Dataset) and dataset.data.nbytes > IN_MEMORY


# --- where they lie -------------------------------------------------------------------------------------------------


def folder() -> Path:
    """Beside the data sets that `datasets` keeps: HF_DATASETS_CACHE, or HF_HOME, says where."""
    return Path(imported("datasets.config:HF_DATASETS_CACHE")) / "rlhf_kit"


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Within, a disk without room, or a folder that may not be written, is the user's matter."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        fault = error.strerror if isinstance(error, PermissionError | NotADirectoryError) else write_fault(error)
        if fault is None:
            raise
        raise UserError(
            f"{str(place)!r}, where large data are kept, cannot be written: {fault}. Make room there, or name another "
            "folder in the environment: HF_DATASETS_CACHE."
        ) from error
