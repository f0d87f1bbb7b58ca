"""Columns that hold what Arrow's tables cannot, and rows without what Arrow's tables add."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

import datasets
import pyarrow
from datasets.features.features import register_feature

from rlhf_kit.data.messages import own_keys
from rlhf_kit.data.rows import AT_ONCE, Filed
from rlhf_kit.errors import UserError

PLAIN = {str: "string", bool: "bool", float: "float64", bytes: "binary"}


@dataclass
class Exact:
    """A column of any JSON values, kept as their text: what is read is what was written.

    Arrow's structs give all objects of a column the same keys (null where there were none) and all numbers one type;
    `datasets.Json` rounds numbers to ten places.
    """

    decode: bool = True
    id: str | None = field(default=None, repr=False)
    dtype: ClassVar[str] = "string"
    pa_type: ClassVar[Any] = pyarrow.string()
    _type: str = field(default="Exact", init=False, repr=False)

    def __call__(self) -> Any:
        return self.pa_type

    def encode_example(self, value: Any) -> str | None:
        return None if value is None else json.dumps(value, ensure_ascii=False)

    def decode_example(self, text: str | None, token_per_repo_id: Any = None) -> Any:
        return None if text is None else json.loads(text)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # that registering is experimental
    register_feature(Exact, "Exact")


class DatasetRows(Filed):
    """`exact_rows` of a data set that is not held in memory."""

    def __init__(self, dataset: datasets.Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def at(self, place: int) -> dict[str, Any]:
        return self.some(range(place, place + 1))[0]

    def some(self, places: range) -> list[dict[str, Any]]:
        return exact_rows(self.dataset.select(places))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for count, read in parts_of(self.dataset, exact_rows):
            yield from read(0, count)


def parts_of(
    dataset: datasets.Dataset, read: Callable[[datasets.Dataset], list[dict]]
) -> Iterator[tuple[int, Callable[[int, int], list[dict]]]]:
    """Of each part of the rows (its size, what reads so many of it from so many on)."""
    for first in range(0, len(dataset), AT_ONCE):
        count = min(AT_ONCE, len(dataset) - first)
        yield count, lambda start, size, first=first: read(dataset.select(range(first + start, first + start + size)))


def rows_of(dataset: datasets.Dataset, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of `dataset` in one go, as `own_keys` has them."""
    return own_keys(exact_rows(dataset), kinds, _exact(dataset))


def exact_rows(dataset: datasets.Dataset) -> list[dict[str, Any]]:
    """The rows of `dataset` in one go: `Exact` columns as their values, images and sounds as their bytes."""
    rows = dataset.with_format(None).to_list()  # which knows no columns but its own
    for name in _exact(dataset):
        for row in rows:
            row[name] = dataset.features[name].decode_example(row[name])
    return rows


def _exact(dataset: datasets.Dataset) -> list[str]:
    return [name for name, feature in dataset.features.items() if isinstance(feature, Exact)]


def exact_columns(columns: Mapping[str, list], source: str) -> list[datasets.Dataset]:
    """Each column as a data set that gives its values back as they are: in Arrow's types where they do, else `Exact`.

    Raises UserError, naming `source` and the columns, for values that neither holds: bytes beside text, say.
    """
    held = {name: _held(name, values) for name, values in columns.items()}
    wrong = [
        f"`{name}` ({', '.join(sorted({type(value).__name__ for value in columns[name]}))})"
        for name, column in held.items()
        if column is None
    ]
    if wrong:
        raise UserError(
            f"{source}: no column holds the values of {', '.join(wrong)} as they are. Give values of one type, or "
            "those of JSON."
        )
    return [*held.values()]


def further_types(rows: Sequence[Mapping[str, Any]], names: Iterable[str], source: str) -> dict[str, Any]:
    """Types of columns of many rows, under which each value is given back as it is. Raises UserError, as above."""
    return {name: _type_of(name, rows, source) for name in names}


def _type_of(name: str, rows: Sequence[Mapping[str, Any]], source: str) -> Any:
    kinds = {type(row[name]) for row in rows} - {type(None)}
    if len(kinds) == 1 and kinds <= PLAIN.keys():
        return datasets.Value(PLAIN[kinds.pop()])
    with suppress(TypeError, ValueError):
        if all(repr(json.loads(json.dumps(row[name]))) == repr(row[name]) for row in rows):
            return Exact()
    return exact_columns({name: [row[name] for row in rows]}, source)[0].features[name]


def _held(name: str, values: list) -> datasets.Dataset | None:
    for features in (None, datasets.Features({name: Exact()})):
        with suppress(pyarrow.ArrowException, OverflowError, TypeError, ValueError):
            column = datasets.Dataset.from_dict({name: values}, features=features)
            if repr(column[name][:]) == repr(values):  # which tells 1 from 1.0 and True, and NaN from none
                return column
    return None
