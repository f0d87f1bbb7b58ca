"""Where the order of a ranking comes from: `ranks`, `scores`, or the order of the answers if no row has either.

A column that looks like an order and is called otherwise is never passed over: the order of the list would be learnt.
"""

from __future__ import annotations

import numbers
import re
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_kit.data.faults import Fault, is_list

ORDERS = ("ranks", "scores")  # the first that a row has counts
FILE_ORDER = "no row has `ranks` or `scores`: the order of `completions` is taken as best first"
# Words, in the singular, of columns that order answers.
_WORDS = frozenset(
    "rank ranking rating score label preference reward order ordering position place grade vote like upvote thumb "
    "judgement judgment evaluation quality utility best worst better choice chosen winner preferred".split()
)


def has_order(row: Mapping[str, Any]) -> bool:
    return any(row.get(name) is not None for name in ORDERS)


def dense(values: Sequence[float]) -> list[int]:
    """Ranks 1, 2, ... in the order of the values, the smallest first; equal values tie.

    >>> dense([3, 7, 3])
    [1, 2, 1]
    """
    order = {value: rank for rank, value in enumerate(sorted(set(values)), start=1)}
    return [order[value] for value in values]


def missing_orders(rows: Sequence[Any]) -> dict[int, Fault]:
    """A fault by the position of each row without an order among rows that have one."""
    without, count = array("Q"), 0
    for at, row in enumerate(rows):
        if isinstance(row, Mapping) and row.get("completions"):
            count += 1
            if not has_order(row):
                without.append(at)
    if len(without) == count:
        return {}
    message = (
        "has neither `ranks` nor `scores`, which other rows have; give them (the order of the list counts only where "
        "no row has any)"
    )
    return dict.fromkeys(without, Fault("no `ranks` among rows that have them", message))


def unread_orders(rows: Sequence[Any]) -> list[str]:
    """What to say of columns that may be the order of the answers where no row has one that is read."""
    if any(isinstance(row, Mapping) and has_order(row) for row in rows):
        return []
    columns = dict.fromkeys(
        name
        for row in rows
        if isinstance(row, Mapping)
        for name, value in row.items()
        if name not in ("prompt", "completions", "margin", "weight", "labeler")
        and value is not None
        and (_is_named_order(name) or _is_one_number_an_answer(value, row.get("completions")))
    )
    return [
        f"`{name}` beside `completions` may be their order, but is not read. Rename it to `ranks` (whole numbers, "
        "1 = best) or `scores` (higher is better), or remove it if it is unrelated to them"
        for name in columns
    ]


def _is_named_order(name: str) -> bool:
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(name)).lower())
    return any(word in _WORDS or word.removesuffix("s") in _WORDS for word in words)


def _is_one_number_an_answer(value: Any, completions: Any) -> bool:
    """Whether `value` is a list of numbers, as many as there are answers."""
    return (
        is_list(value)
        and is_list(completions)
        and len(value) == len(completions) > 0
        and all(isinstance(item, numbers.Real) for item in value)
    )
