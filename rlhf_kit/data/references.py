"""Questions with their reference answers from the datasets' own files, and predictions from the official formats.

All faults of a file are reported together, each with the id of its story or question. No model is needed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_kit.errors import UserError
from rlhf_kit.inputs import read_json

SHOWN, LONGEST = 10, 300  # faults told, and characters of each

# (story id, turn from 1) of CoQA, or a question's id.
Key = tuple[str, int] | str


def read_squad(path: Path, unanswerable: bool = False) -> dict[str, tuple[str, ...]]:
    """Reference answers by question id, of a file in SQuAD's format (SQuAD, XQuAD, MLQA, DRCD, CMRC) or CMRC's own.

    Args:
        unanswerable: take questions without answers too, as SQuAD 2.0 has them.

    Raises UserError with all faults: missing fields, a question without answers, equal ids.
    """
    questions, faults = [], []
    for place, question in _questions(data_of(path, or_list=True)):
        fault = _question_fault(question, unanswerable)
        if fault:
            faults.append(f"{place}: {fault}")
        else:
            questions.append((str(question["id"]), tuple(answer["text"] for answer in question["answers"])))
    faults += [f"question {name!r}: appears twice" for name in _twice(name for name, _ in questions)]
    if faults:
        raise _error(path, faults, "It must be in SQuAD's format.")
    return dict(questions)


def read_predictions(path: Path, known: Sequence[Key], subset: bool = False) -> tuple[dict[Key, str], int]:
    """Answers of a predictions file, by the keys of the questions, and how many others it holds.

    CoQA's format is [{"id", "turn_id", "answer"}, ...] in any order; that of all others {id: answer}. A question
    without an answer is missing.

    Args:
        subset: leave out what is not in `known`, where that is a part of what was predicted.

    Raises UserError with all faults: unknown or repeated keys, answers that are no text, no known key at all.
    """
    by_turn = isinstance(known[0], tuple)
    loaded = read_json(path, as_object=list)
    answers, faults = _turn_pairs(loaded) if by_turn else _id_pairs(loaded)
    if faults:
        form = '[{"id", "turn_id", "answer"}, ...]' if by_turn else "{id: answer}"
        raise _error(path, faults, f"It must be {form}.")
    if not answers:
        raise UserError(f"{path} holds no predictions; give the file that the answers were written to.")
    faults = [f"{_told(key)}: its answer is {answer!r}, not a text" for key, answer in answers if not _text(answer)]
    return _of_known(path, answers, known, subset, faults)


def read_na_probs(path: Path, known: Sequence[Key], answered: Sequence[Key], subset: bool = False) -> dict[str, float]:
    """How likely a question has no answer, by its id, in the file's order: {id: number}, of every answered question.

    Any scale will do: probabilities, or the differences between the score of no answer and the best answer's.
    Raises UserError with all faults, as `read_predictions` does, also for what is not a finite number.
    """
    probabilities, faults = _id_pairs(read_json(path, as_object=list))
    if faults:
        raise _error(path, faults, "It must be {id: number}.")
    faults = [
        f"{_told(key)}: {value!r} is not a finite number" for key, value in probabilities if not _is_number(value)
    ]
    there = {key for key, _ in probabilities}
    faults += [f"{_told(key)}: has an answer but no probability in this file" for key in answered if key not in there]
    return _of_known(path, probabilities, known, subset, faults)[0]


def _of_known(
    path: Path, found: Sequence[tuple[Key, Any]], known: Sequence[Key], subset: bool, faults: Sequence[str]
) -> tuple[dict[Key, Any], int]:
    """What belongs to known questions, and how much else there is. Raises UserError with `faults` and more."""
    there = set(known)
    unknown = [key for key, _ in found if key not in there]
    faults = [f"{_told(key)}: appears twice" for key in _twice(key for key, _ in found)] + list(faults)
    if subset and found and len(unknown) == len(found):
        raise _error(path, ["none of its ids is in the references"], "Give the references that it answers.")
    if unknown and not subset:
        faults += [f"{_told(key)}: is not in the references" for key in unknown]
        advice = "Give the references that it answers, or ignore the other predictions with --subset."
    else:
        advice = "Fix or remove these."
    if faults:
        raise _error(path, faults, advice)
    return {key: value for key, value in found if key in there}, len(unknown)


# ------------------------------------------------------------------------------------------
# SQuAD's format


def _questions(articles: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Each question with where it stands; None for the questions of what has none."""
    for number, article in enumerate(articles, 1):
        if is_raw_cmrc(article):
            article = _from_raw_cmrc(article)
        paragraphs = article.get("paragraphs") if isinstance(article, Mapping) else None
        for at, paragraph in enumerate(paragraphs if isinstance(paragraphs, list) else [None], 1):
            place = f"article {number}, paragraph {at}"
            questions = paragraph.get("qas") if isinstance(paragraph, Mapping) else None
            for question in questions if isinstance(questions, list) else [None]:
                name = question.get("id") if isinstance(question, Mapping) else None
                yield place if name is None else f"{place}, question {name!r}", question


def is_raw_cmrc(article: Any) -> bool:
    """Whether a passage is in the layout of CMRC's `data/`: `context_text`, and answers that are texts alone."""
    return isinstance(article, Mapping) and "context_text" in article and "paragraphs" not in article


def _from_raw_cmrc(passage: Mapping[str, Any]) -> dict[str, Any]:
    questions = passage.get("qas")
    if isinstance(questions, list):
        questions = [_from_raw_question(one) if isinstance(one, Mapping) else one for one in questions]
    return {"paragraphs": [{"context": passage["context_text"], "qas": questions}]}


def _from_raw_question(question: Mapping[str, Any]) -> dict[str, Any]:
    answers = question.get("answers")
    if isinstance(answers, list):
        answers = [{"text": answer} for answer in answers]
    return {"id": question.get("query_id"), "question": question.get("query_text"), "answers": answers}


def contradicts(is_impossible: Any, answers: Sequence[Any]) -> bool:
    """Whether SQuAD 2.0's mark, where there is one, says something else than the answers do."""
    return is_impossible is not None and bool(is_impossible) == bool(answers)


def _question_fault(question: Any, unanswerable: bool = False) -> str:
    if question is None:
        return "has no `qas`"
    if not isinstance(question, Mapping) or not isinstance(question.get("id"), str | int):
        return "a question has no `id`"
    answers = question.get("answers")
    if not isinstance(answers, list):
        return "has no `answers`"
    if unanswerable and contradicts(question.get("is_impossible"), answers):
        return f"`is_impossible` is {question['is_impossible']!r}, and it has {len(answers)} answers"
    if not answers and not unanswerable:
        return "has no `answers`; SQuAD 2.0, which has such questions, is scored as squad2"
    if not all(isinstance(answer, Mapping) and _text(answer.get("text")) for answer in answers):
        return "an answer has no `text`"
    return ""


# ------------------------------------------------------------------------------------------
# Predictions. JSON objects are lists of pairs here: in a dict of them a repeated id would be lost.


def _turn_pairs(loaded: Any) -> tuple[list[tuple[Any, Any]], list[str]]:
    pairs, faults = [], []
    for number, entry in enumerate(loaded if isinstance(loaded, list) else (), 1):
        fields = dict(entry) if _is_object(entry) else {}
        missing = [field for field in ("id", "turn_id", "answer") if field not in fields]
        if missing:
            place = f" of {fields['id']!r}" if "id" in fields else ""
            faults.append(f"prediction number {number}{place}: has no {', '.join(f'`{field}`' for field in missing)}")
        elif not isinstance(fields["turn_id"], int):
            faults.append(f"prediction number {number} of {fields['id']!r}: its turn_id is {fields['turn_id']!r}")
        else:
            pairs.append(((str(fields["id"]), fields["turn_id"]), fields["answer"]))
    return (pairs, faults) if isinstance(loaded, list) and not (loaded and _is_object(loaded)) else ([], ["no list"])


def _id_pairs(loaded: Any) -> tuple[list[tuple[Any, Any]], list[str]]:
    return (loaded, []) if _is_object(loaded) else ([], ["no object"])


def _is_object(entry: Any) -> bool:
    return isinstance(entry, list) and all(isinstance(pair, tuple) for pair in entry)


def _told(key: Key) -> str:
    return f"story {key[0]!r}, turn {key[1]}" if isinstance(key, tuple) else f"question {key!r}"


# ------------------------------------------------------------------------------------------
# Files


def data_of(path: Path, or_list: bool = False) -> list[Any]:
    """The list `data` of a dataset's own file, or with `or_list` a file that is that list. Raises UserError."""
    loaded = read_json(path)
    data = loaded.get("data") if isinstance(loaded, Mapping) else loaded if or_list else None
    if not isinstance(data, list) or not data:
        raise UserError(f"{path}: has no non-empty list `data`; give the dataset's own JSON file.")
    return data


def _error(path: Path, faults: Sequence[str], advice: str) -> UserError:
    count = f"{len(faults)} fault{'' if len(faults) == 1 else 's'}"
    lines = [f"{path}: {count}; nothing was scored. {advice}", *(f"  {fault[:LONGEST]}" for fault in faults[:SHOWN])]
    return UserError("\n".join(lines + [f"  ... and {len(faults) - SHOWN} more"] * (len(faults) > SHOWN)))


def _twice(keys: Iterator[Any]) -> list[Any]:
    return [key for key, count in Counter(keys).items() if count > 1]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf
