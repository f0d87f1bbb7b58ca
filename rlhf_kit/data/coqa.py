"""CoQA's stories and dialogues, from the official JSON, the hub's columns or the embedded world; checked in full.

Official: `{"data": [{"id", "source", "story", "questions": [{"input_text", "turn_id"}], "answers": [the same],
"additional_answers": {"0": [the same], ...}}]}`. The hub's `stanfordnlp/coqa` has no ids and one answer a turn:
`questions` are strings, `answers` is `{"input_text": [...]}`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_kit.data import sources
from rlhf_kit.data.faults import describe, is_list
from rlhf_kit.data.references import data_of
from rlhf_kit.errors import UserError

KIND = "conversations"
SHOWN = 20  # faults told in full


@dataclass(frozen=True)
class Story:
    """A passage and the dialogue about it.

    `answers`: of each turn the references; the first stands in the history.
    """

    id: str
    source: str
    text: str
    questions: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]


def read_stories(source: str, split: str, seed: int = 0) -> list[Story]:
    """Stories of a file, a folder, a hub id or "world".

    Raises:
        UserError: with all faults, each with the story's id.
    """
    read = sources.read(source, (KIND,), split, seed)
    unread = [f"{read.context.unit} {at} {text}" for at, text in read.context.faults]
    return stories(read.name, read.rows, unread)


def read_file(path: Path) -> list[Story]:
    """Stories of a CoQA JSON file. Raises UserError with all faults: missing fields, turns out of order, equal ids."""
    return stories(str(path), data_of(path))


def stories(name: str, rows: Sequence[Any], faults: Sequence[str] = ()) -> list[Story]:
    """Rows as stories; of one without `id` its number, from 1, is the id. `name` and `faults` are for the message."""
    faults, ids = list(faults), [_id(number, row) for number, row in enumerate(rows, start=1)]
    faults += [f"{count} stories have the id {name!r}" for name, count in Counter(ids).items() if count > 1]
    for name_of_story, row in zip(ids, rows, strict=True):
        faults += [f"story {name_of_story!r}: {fault}" for fault in _faults(row)]
    if not rows and not faults:
        faults = ["it contains no stories"]
    if faults:
        more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        listing = "".join(f"\n  {fault}" for fault in faults[:SHOWN])
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise UserError(f"{name} is not valid CoQA data, {count}:{listing}{more}\nFix the file, or give another.")
    return [_story(name_of_story, row) for name_of_story, row in zip(ids, rows, strict=True)]


def _id(number: int, row: Any) -> str:
    identifier = row.get("id") if isinstance(row, Mapping) else None
    return str(number) if identifier is None else str(identifier)


def _story(name: str, row: Mapping[str, Any]) -> Story:
    more = row.get("additional_answers") or {}
    columns = [_texts(row["answers"]), *(_texts(more[key]) for key in sorted(more) if more[key] is not None)]
    references = tuple(tuple(map(str.strip, turn)) for turn in zip(*columns, strict=True))
    questions = tuple(map(str.strip, _texts(row["questions"])))
    return Story(name, str(row.get("source") or "unknown"), row["story"].strip(), questions, references)


def _texts(turns: Any) -> list[Any]:
    """The texts of turns in either form; what has none gives None."""
    if isinstance(turns, Mapping):
        turns = turns["input_text"]
    return [turn.get("input_text") if isinstance(turn, Mapping) else turn for turn in turns]


def _faults(row: Any) -> Iterator[str]:
    if not isinstance(row, Mapping):
        yield f"is {describe(row)}; give an object"
        return
    missing = [f"`{key}`" for key in ("story", "questions", "answers") if row.get(key) is None]
    if missing:
        yield f"has no {', '.join(missing)}"
        return
    if not isinstance(row["story"], str) or not row["story"].strip():
        yield f"`story` is {describe(row['story'])}; give the passage"
    turns = None
    lists = {"questions": row["questions"], "answers": row["answers"]}
    more = row.get("additional_answers") or {}
    if not isinstance(more, Mapping):
        yield f'`additional_answers` is {describe(more)}; give {{"0": [...], "1": [...]}}'
        more = {}
    lists |= {f"additional_answers {key!r}": more[key] for key in sorted(more) if more[key] is not None}
    for key, value in lists.items():
        faults = list(_turn_faults(value))
        yield from (f"`{key}`: {fault}" for fault in faults)
        if not faults:
            turns = turns or len(_texts(value))
            if len(_texts(value)) != turns:
                yield f"`{key}` has {len(_texts(value))} turns, `questions` {turns}"


def _turn_faults(turns: Any) -> Iterator[str]:
    if isinstance(turns, Mapping):
        turns = turns.get("input_text")
    if not is_list(turns) or not turns:
        yield f'is {describe(turns)}; give a list of {{"input_text", "turn_id"}}'
        return
    for number, turn in enumerate(turns, start=1):
        text = turn.get("input_text") if isinstance(turn, Mapping) else turn
        if not isinstance(text, str):  # it may be empty: people wrote them
            yield f"turn {number} has no `input_text`" if text is None else f"turn {number} is {describe(text)}"
    places = [turn.get("turn_id", at) if isinstance(turn, Mapping) else at for at, turn in enumerate(turns, start=1)]
    wrong = next((at for at, place in enumerate(places, start=1) if place != at), None)
    if wrong is not None:
        yield f"turn {wrong} has the `turn_id` {places[wrong - 1]}; they must be 1, 2, 3 ..."
