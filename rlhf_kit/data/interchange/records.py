"""What the readers of foreign records share: taking a value out, and saying why a record is left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_kit.data.faults import is_list
from rlhf_kit.data.groups import Row
from rlhf_kit.data.messages import OPENING
from rlhf_kit.data.orders import dense
from rlhf_kit.data.unread import lost_from_prompt

# A field of these names is the prompt, the first that is there.
_PROMPTS = ("prompt", "instruction", "question", "query", "input", "chat", "messages", "conversation", "text")


@dataclass
class Tally:
    """What a reader has to say beside its rows, each with how often: what it left out, and how it read the rest."""

    left_out: Counter = field(default_factory=Counter)
    noted: Counter = field(default_factory=Counter)


Reader = Callable[..., list[Row]]  # of records and a Tally, and of what only this format asks of the user


class Skip(Exception):
    """A record, or one labeler's ranking in it, that is left out; its text is the reason, by which it is counted."""


def each(read_one: Callable[..., Iterable[Row]]) -> Reader:
    """A reader of many records from one of a single record."""

    def read(records: Sequence[Any], tally: Tally, **asked: Any) -> list[Row]:
        rows: list[Row] = []
        for record in records:
            try:
                rows.extend(read_one(record, tally, **asked))
            except Skip as reason:
                tally.left_out[str(reason)] += 1
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
        raise Skip(f"`{name}` of a wrong type" if path else "a record that is not an object")
    return value


def prompt_field(fields: Mapping[str, Any], answers: Iterable[str]) -> str:
    """Which field is the prompt: one of the usual names, or the only one that is no answer. Raises Skip."""
    left = [name for name in fields if name not in set(answers)]
    named = [name for name in _PROMPTS if name in left]
    if not named and len(left) != 1:
        raise Skip("no prompt field")
    return (named or left)[0]


def asked(fields: Mapping[str, Any], answers: Iterable[str], tally: Tally) -> Row:
    """`prompt` of the fields that are no answers, with the `system` and `history` beside it; the rest is noted.

    Raises Skip for a field without which another thing was asked.
    """
    prompt = prompt_field(fields, answers)
    row = {"prompt": fields[prompt]}
    others = {name: value for name, value in fields.items() if value and name not in {prompt, *answers}}
    row |= {name: value for name, value in others.items() if name in OPENING}
    unread = [name for name in others if name not in OPENING]
    if lost := lost_from_prompt([{**others, **row}], unread):
        raise Skip(lost[0])
    tally.noted.update(f"the field `{name}` is not read" for name in unread)
    return row


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list; none of anything else."""
    return [item for item in value if isinstance(item, Mapping)] if is_list(value) else []


def ranks_from(values: Sequence[float]) -> list[int]:
    """`orders.dense` of a record's values, of which the smallest is best. Raises Skip for NaN and infinity."""
    if not all(map(math.isfinite, values)):
        raise Skip("a score that is not a finite number")
    return dense(values)
