"""Questions with their reference answers from the datasets' own files, and predictions from the official formats.

Whatever is wrong with a file is told at once, each fault with the id of its story or question. No model is needed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_kit.errors import UserError
from rlhf_kit.eval.coqa_data import Story, stories

SHOWN = 10  # faults told in full

# (story id, turn from 1) of CoQA, or a question's id.
Key = tuple[str, int] | str


def read_coqa(path: Path) -> list[Story]:
    """Stories of a CoQA JSON file. Raises UserError with all faults: missing fields, turns out of order, equal ids."""
    return stories(str(path), _data(path))


def read_squad(path: Path) -> dict[str, tuple[str, ...]]:
    """Reference answers by question id, of a file in SQuAD's v1.1 format (SQuAD, XQuAD, MLQA, DRCD, CMRC).

    Raises UserError with all faults: missing fields, a question without answers, equal ids.
    """
    found, faults = [], []
    for place, question in _questions(_data(path)):
        fault = _question_fault(question)
        if fault:
            faults.append(f"{place}: {fault}")
        else:
            found.append((str(question["id"]), tuple(answer["text"] for answer in question["answers"])))
    faults += [f"question {name!r}: stands there twice" for name in _twice(name for name, _ in found)]
    if faults:
        raise _error(path, faults, "It must be in SQuAD's v1.1 format.")
    return dict(found)


def read_predictions(path: Path, known: Sequence[Key]) -> dict[Key, str]:
    """Answers of a predictions file, by the keys of the questions; one that has none is missing.

    CoQA's format is [{"id", "turn_id", "answer"}, ...], a story's turns in order; that of all others {id: answer}.
    Raises UserError with all faults: unknown or repeated keys, turns out of order, answers that are no text.
    """
    by_turn = isinstance(known[0], tuple)
    loaded = _json(path, object_pairs_hook=list)
    found, faults = _turn_pairs(loaded) if by_turn else _id_pairs(loaded)
    if not faults:
        there = set(known)
        faults += [f"{_told(key)}: is not in the references" for key, _ in found if key not in there]
        faults += [f"{_told(key)}: stands there twice" for key in _twice(key for key, _ in found)]
        faults += [f"{_told(key)}: its answer is {answer!r}, not a text" for key, answer in found if not _text(answer)]
    if by_turn and not faults:
        faults = list(_order_faults([key for key, _ in found]))
    if faults:
        raise _error(path, faults, 'It must be [{"id", "turn_id", "answer"}, ...].' if by_turn else "{id: answer}.")
    return dict(found)


# ------------------------------------------------------------------------------------------
# SQuAD's format


def _questions(articles: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Each question with where it stands; None for the questions of what has none."""
    for number, article in enumerate(articles, 1):
        paragraphs = article.get("paragraphs") if isinstance(article, Mapping) else None
        for at, paragraph in enumerate(paragraphs if isinstance(paragraphs, list) else [None], 1):
            place = f"article {number}, paragraph {at}"
            asked = paragraph.get("qas") if isinstance(paragraph, Mapping) else None
            for question in asked if isinstance(asked, list) else [None]:
                name = question.get("id") if isinstance(question, Mapping) else None
                yield place if name is None else f"{place}, question {name!r}", question


def _question_fault(question: Any) -> str:
    if question is None:
        return "has no `qas`"
    if not isinstance(question, Mapping) or not isinstance(question.get("id"), str | int):
        return "a question has no `id`"
    answers = question.get("answers")
    if not isinstance(answers, list) or not answers:
        return "has no `answers`"
    if not all(isinstance(answer, Mapping) and _text(answer.get("text")) for answer in answers):
        return "an answer has no `text`"
    return ""


# ------------------------------------------------------------------------------------------
# Predictions. JSON objects are lists of pairs here: in a dict of them a repeated id would be lost.


def _turn_pairs(loaded: Any) -> tuple[list[tuple[Any, Any]], list[str]]:
    found, faults = [], []
    for number, entry in enumerate(loaded if isinstance(loaded, list) else (), 1):
        fields = dict(entry) if _is_object(entry) else {}
        missing = [field for field in ("id", "turn_id", "answer") if field not in fields]
        if missing:
            told = f" of {fields['id']!r}" if "id" in fields else ""
            faults.append(f"prediction number {number}{told}: has no {', '.join(f'`{field}`' for field in missing)}")
        elif not isinstance(fields["turn_id"], int):
            faults.append(f"prediction number {number} of {fields['id']!r}: its turn_id is {fields['turn_id']!r}")
        else:
            found.append(((str(fields["id"]), fields["turn_id"]), fields["answer"]))
    return (found, faults) if isinstance(loaded, list) and not (loaded and _is_object(loaded)) else ([], ["no list"])


def _id_pairs(loaded: Any) -> tuple[list[tuple[Any, Any]], list[str]]:
    return (loaded, []) if _is_object(loaded) else ([], ["no object"])


def _order_faults(keys: Sequence[tuple[str, int]]) -> Iterator[str]:
    """Turns of a story must stand in their order: else perhaps answers were put to the wrong questions."""
    last: dict[str, int] = {}
    for story, turn in keys:
        if turn < last.get(story, 0):
            yield f"{_told((story, turn))}: stands after turn {last[story]}"
        last[story] = turn


def _is_object(entry: Any) -> bool:
    return isinstance(entry, list) and all(isinstance(pair, tuple) for pair in entry)


def _told(key: Key) -> str:
    return f"story {key[0]!r}, turn {key[1]}" if isinstance(key, tuple) else f"question {key!r}"


# ------------------------------------------------------------------------------------------
# Files


def _data(path: Path) -> list[Any]:
    loaded = _json(path)
    data = loaded.get("data") if isinstance(loaded, Mapping) else None
    if not isinstance(data, list) or not data:
        raise UserError(f"{path}: has no list `data` with something in it; give the dataset's own JSON file.")
    return data


def _json(path: Path, **options: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), **options)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # not JSON, not UTF-8
        raise UserError(f"{path} is not a JSON file: {error}.") from error


def _error(path: Path, faults: Sequence[str], advice: str) -> UserError:
    count = f"{len(faults)} fault{'' if len(faults) == 1 else 's'}"
    lines = [f"{path}: {count}; nothing was scored. {advice}", *(f"  {fault}" for fault in faults[:SHOWN])]
    return UserError("\n".join(lines + [f"  ... and {len(faults) - SHOWN} more"] * (len(faults) > SHOWN)))


def _twice(keys: Iterator[Any]) -> list[Any]:
    return [key for key, count in Counter(keys).items() if count > 1]


def _text(value: Any) -> bool:
    return isinstance(value, str)
