"""What the readers of foreign records share: taking a value out, and saying why a record is left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rlhf_kit.data.faults import is_list
from rlhf_kit.data.groups import Row

# A field of these names is the prompt, the first that is there.
_PROMPTS = ("prompt", "instruction", "question", "query", "input", "chat", "messages", "conversation", "text")

Reader = Callable[[Sequence[Any], Counter], list[Row]]


class Skip(Exception):
    """A record, or one labeler's ranking in it, that is left out; its text is the reason, by which it is counted."""


def each(read_one: Callable[[Any, Counter], Iterable[Row]]) -> Reader:
    """A reader of many records from one of a single record, which gets the counts of what is left out as well."""

    def read(records: Sequence[Any], skipped: Counter) -> list[Row]:
        rows: list[Row] = []
        for record in records:
            try:
                rows.extend(read_one(record, skipped))
            except Skip as reason:
                skipped[str(reason)] += 1
        return rows

    return read


def take(record: Any, types: type | tuple[type, ...], *path: str) -> Any:
    """The value at a path of names. Raises Skip if it is not there or of another type."""
    name, value = ".".join(path), record
    for step in path:
        value = value.get(step) if isinstance(value, Mapping) else None
    if value is None and path:
        raise Skip(f"no `{name}`")
    if not isinstance(value, types) or isinstance(value, bool):
        raise Skip(f"`{name}` of a wrong type" if path else "what is no object")
    return value


def prompt_field(fields: Mapping[str, Any], answers: Iterable[str]) -> str:
    """Which field is the prompt: one of the usual names, or the only one that is no answer. Raises Skip."""
    left = [name for name in fields if name not in set(answers)]
    named = [name for name in _PROMPTS if name in left]
    if not named and len(left) != 1:
        raise Skip("no field that is the prompt")
    return (named or left)[0]


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list; none of anything else."""
    return [item for item in value if isinstance(item, Mapping)] if is_list(value) else []


def dense(values: Sequence[float]) -> list[int]:
    """Ranks 1, 2, ... of values of which the smallest is best; equal values tie. Raises Skip for NaN and infinity."""
    if not all(map(math.isfinite, values)):
        raise Skip("a score that is no finite number")
    order = {value: rank for rank, value in enumerate(sorted(set(values)), start=1)}
    return [order[value] for value in values]
