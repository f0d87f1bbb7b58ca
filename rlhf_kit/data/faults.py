"""Faults of rows, the places of those rows, and values as a message shows them."""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_kit.errors import UserError, did_you_mean

WRONG_TYPE = "wrong type"
ON_BAD_ROW = ("error", "drop")  # what becomes of a source, or of its rows, with faults


class Fault(str):
    """What is wrong with a row, what was found and what to do; `kind` is it in a few words, to count by."""

    kind: str

    def __new__(cls, kind: str, text: str) -> Fault:
        fault = super().__new__(cls, text)
        fault.kind = kind
        return fault


def describe(value: Any) -> str:
    """A value as a message names it."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, numbers.Number):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}" + ("..." if len(value) > 40 else "")
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, Sequence) else f"a {type(value).__name__}"


def is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def text_faults(name: str, value: Any) -> Iterator[Fault]:
    if not isinstance(value, str):
        yield Fault(WRONG_TYPE, f"{name} is {describe(value)}; give a string")
    elif not value.strip():
        yield Fault("empty text", f"{name} is empty; give some text or remove the row")


_HALF = re.compile("[\\ud800-\\udfff]")


def half_characters(value: Any, name: str = "") -> Iterator[Fault]:
    """Texts in `value`, at any depth, with one half of a surrogate pair, which no tokenizer and no file takes."""
    if isinstance(value, str):
        if half := _HALF.search(value):
            message = f"{name} has half a character ({half[0]!r}, at {half.start()}), as an emoji cut in two leaves"
            yield Fault("half a character", f"{message}; remove it, or write the whole character")
    elif isinstance(value, Mapping):
        for key, member in value.items():
            yield from half_characters(key, f"the name {key!r}")
            yield from half_characters(member, f"{name}, `{key}`" if name else f"`{key}`")
    elif is_list(value):
        for at, member in enumerate(value, start=1):
            yield from half_characters(member, f"{name}, {at}")


def check_on_bad_row(on_bad_row: str) -> None:
    if on_bad_row not in ON_BAD_ROW:
        hint = did_you_mean(on_bad_row, ON_BAD_ROW)
        raise UserError(f"on_bad_row is {on_bad_row!r}; give 'error' or 'drop'.{hint}")


@dataclass
class Context:
    """The places of rows in their source, and the faults already found while reading them."""

    unit: str = "row"  # what the numbers count, both from 1: "line" of a .jsonl file, "row" of anything else
    numbers: Sequence[int] | None = None  # of each row; None = 1, 2, 3...
    faults: list[tuple[int, str]] = field(default_factory=list)  # (number, what is wrong)

    def numbers_of(self, rows: Sequence[Any]) -> Sequence[int]:
        """One number per row; ValueError if there are more or fewer."""
        if self.numbers is None:
            return range(1, len(rows) + 1)
        if len(self.numbers) != len(rows):
            raise ValueError(f"{len(self.numbers)} numbers for {len(rows)} rows")
        return self.numbers
