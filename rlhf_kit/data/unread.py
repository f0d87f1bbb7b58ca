"""Columns that nothing reads: named with the number of rows that have them, or refused where the rows mean something
else without them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlhf_kit.data.faults import is_list
from rlhf_kit.data.formats import KINDS, PART_OF_PROMPT, SYSTEM
from rlhf_kit.data.messages import LEARNT
from rlhf_kit.data.orders import FILE_ORDER, has_order, unread_orders
from rlhf_kit.data.prompts import left_out, reserved_columns


def refused_columns(rows: Sequence[Any], kind: str) -> list[str]:
    """What to say of columns without which rows of `kind` would be read wrongly, in silence."""
    if kind == "text":
        return []
    if kind == "prompts":
        return reserved_columns(rows)
    columns = unread_orders(rows) if kind == "ranked" else []
    unread = unread_columns(rows, kind)
    columns += lost_from_prompt(rows, unread)
    if "label" in unread and kind == "demonstrations":
        columns.append(
            "`label` tells good answers from bad, but every demonstration is learned: keep the good rows and remove "
            "the column"
        )
    if "weight" in unread and any(row.get("weight") not in (None, 1) for row in rows if isinstance(row, Mapping)):
        columns.append(f"`weight` counts in rankings and pairs only; {kind} have none; remove the column")
    return columns


def lost_from_prompt(rows: Sequence[Any], unread: Iterable[str]) -> list[str]:
    """What to say of those of the `unread` columns that belong into the prompt."""
    columns = []
    for name in unread:
        if name.lower() in PART_OF_PROMPT and any(_is_missing(row, name) for row in rows):
            advice = "rename it to `system`" if name.lower() in SYSTEM else "put it there, below the instruction"
            columns.append(
                f"`{name}` is not read, and rows have one that is not part of their `prompt`: {advice}, or remove the "
                "column"
            )
    return columns


def notices(rows: Sequence[Any], kind: str) -> list[str]:
    """What is to be said once of rows of `kind`: the order they are given in, the columns that nothing reads."""
    lines = []
    if kind == "ranked" and not any(isinstance(row, Mapping) and has_order(row) for row in rows):
        lines.append(FILE_ORDER)
    if unread := unread_columns(rows, kind):
        named = ", ".join(
            f"`{name}`" + ("" if count == len(rows) else f" (in {count} of {len(rows)} rows)")
            for name, count in unread.items()
        )
        why = "the sampled ones have this name; rename it to pass it on"
        lines.append(f"not read, as {why if kind == 'prompts' else f'{kind} have no such columns'}: {named}")
    if fields := unread_fields(rows, kind):
        named = ", ".join(f"`{name}` (in {count} of {len(rows)} rows)" for name, count in fields.items())
        lines.append(f"not read, as answers are text: {named}")
    if kind == "prompts" and (count := sum(bool(row.get("tools")) for row in rows if isinstance(row, Mapping))):
        lines.append(f"`tools` (in {count} of {len(rows)} rows) are handed on, and not shown to the model")
    return lines


def unread_fields(rows: Sequence[Any], kind: str) -> Counter[str]:
    """How many rows have each further field of an answer; of a demonstration's the chat template may read them."""
    counts: Counter[str] = Counter()
    for row in rows if kind in ("ranked", "pairs", "thumbs") else ():
        answers = [row.get(name) for name in ("completion", "chosen", "rejected")] if isinstance(row, Mapping) else []
        listed = row.get("completions") if isinstance(row, Mapping) else None
        answers += listed if is_list(listed) else []
        turns = [answer[-1] for answer in answers if is_list(answer) and answer]
        held = {str(name) for turn in turns if isinstance(turn, Mapping) for name in turn if turn[name] is not None}
        counts.update(sorted(held - {"role", "content", *LEARNT}))
    return counts


def unread_columns(rows: Sequence[Any], kind: str) -> Counter[str]:
    """How many rows have each column that nothing reads; of prompts further columns are handed on."""
    if kind == "prompts":
        return left_out(rows)
    counts: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, Mapping):
            present = [name for name, value in row.items() if value is not None]
            form = KINDS[kind].form(present)  # None: a fault of the row, told as such
            counts.update(str(name) for name in present if form and name not in (*form, *KINDS[kind].optional))
    return counts


def _is_missing(row: Any, name: str) -> bool:
    """Whether a row has something under `name` that its prompt does not hold."""
    value = row.get(name) if isinstance(row, Mapping) else None
    if not isinstance(value, str):
        return value not in (None, [], {})
    return bool(value.strip()) and not any(value.strip() in text for text in _texts(row))


def _texts(row: Mapping[str, Any]) -> Iterator[str]:
    """Every text of the row's dialogue up to its answers."""
    for name in ("messages", "prompt", "chosen"):
        held = row.get(name)
        for turn in held if is_list(held) else [held] * isinstance(held, str):
            content = turn.get("content") if isinstance(turn, Mapping) else turn
            yield content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
