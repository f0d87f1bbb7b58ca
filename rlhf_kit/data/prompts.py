"""Rows of any kind as PPO's prompts: the prompt that they contain, and every other column as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlhf_kit.data.faults import is_list
from rlhf_kit.data.messages import before_answer, shared_prompt, with_opening

# What reward functions, and the trainer's own rows, have under these names.
RESERVED = ("prompts", "completions", "completion_ids", "prompt_ids", "trainer_state")


def prompt_of(row: Mapping[str, Any]) -> Any:
    """The row's `prompt`; else its `messages` before their answer; else what `chosen` and `rejected` begin with.

    What its `system` and `history` say stands before it.
    """
    row = with_opening(row)
    if row.get("prompt") is not None:
        return row["prompt"]
    if row.get("messages") is not None:
        return before_answer(row["messages"])
    return shared_prompt(row["chosen"], row["rejected"])


def handed_on(columns: Iterable[str]) -> list[str]:
    """The columns that reward functions get beside the prompt, each under its own name."""
    return [name for name in columns if name not in ("prompt", *RESERVED)]


def reserved_columns(rows: Sequence[Any]) -> list[str]:
    """What to say of columns whose name reward functions have for something else."""
    names = dict.fromkeys(name for row in rows for name in _reserved(row) if not _are_answers(row, name))
    return [
        f"`{name}` is what a reward function gets from the trainer; rename the column to pass it on" for name in names
    ]


def left_out(rows: Sequence[Any]) -> Counter[str]:
    """How many rows have the answers of a ranking, which no function gets: `completions` are the sampled ones."""
    return Counter(name for row in rows for name in _reserved(row) if _are_answers(row, name))


def _reserved(row: Any) -> Iterator[str]:
    yield from (name for name in RESERVED if isinstance(row, Mapping) and row.get(name) is not None)


def _are_answers(row: Mapping[str, Any], name: str) -> bool:
    return name == "completions" and is_list(row[name])
