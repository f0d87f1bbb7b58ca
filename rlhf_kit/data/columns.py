"""Columns that hold what Arrow's tables cannot, and rows without what Arrow's tables add."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import datasets
import pyarrow
from datasets.features.features import register_feature


@dataclass
class Exact:
    """A column of whatever JSON can hold, held as its text: what is read is what was written.

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


def exact_rows(dataset: datasets.Dataset) -> list[dict[str, Any]]:
    """The rows of `dataset`, without the nulls that objects get for keys of other objects of their column."""
    kept_whole = {name for name, feature in dataset.features.items() if hasattr(feature, "decode_example")}
    return [
        {name: value if name in kept_whole else without_nulls(value) for name, value in row.items()} for row in dataset
    ]


def without_nulls(value: Any) -> Any:
    """`value` without the null members of its objects, however deep."""
    if isinstance(value, Mapping):
        return {key: without_nulls(member) for key, member in value.items() if member is not None}
    return [without_nulls(member) for member in value] if isinstance(value, list) else value
