"""Questions about passages, from files in SQuAD's format, the hub's `squad` columns or the embedded world.

SQuAD, XQuAD, MLQA, DRCD and CMRC 2018: `{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question",
"answers": [{"text", "answer_start"}]}]}]}]}`. The hub has a row a question: `id`, `context`, `question`, `answers` as
`{"text": [...], "answer_start": [...]}`. An answer must stand in its passage; where is found out anew if need be.
SQuAD 2.0's questions without an answer have an empty list of them (`is_impossible` says the same, where it stands).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlhf_kit.data import sources
from rlhf_kit.data.faults import check_on_bad_row, describe, is_list
from rlhf_kit.data.references import contradicts, is_raw_cmrc
from rlhf_kit.errors import UserError
from rlhf_kit.eval.extractive.questions import Question, kind_of
from rlhf_kit.hashes import text_hash

WORLD_KINDS = ("squad_en", "squad_zh", "crowd_en", "crowd_zh")
SHOWN = 20  # faults told in full


@dataclass(frozen=True)
class Counts:
    """What was read. `realigned`: ids of questions with an answer that stood elsewhere than its start says.

    `dropped`: ids of what was left out, by fault; empty where faults are errors.
    """

    questions: int
    passages: int
    references: int
    realigned: tuple[str, ...] = ()
    dropped: dict[str, list[str]] = field(default_factory=dict)


def read_questions(
    source: str, split: str, seed: int = 0, on_bad_row: str = "error", unanswerable: bool = False
) -> tuple[list[Question], Counts]:
    """Questions of a file, a folder, a hub id or a kind of the world, such as "world:squad_en".

    Args:
        on_bad_row: "error" refuses a source with faulty questions, "drop" leaves them out and counts them.
        unanswerable: take questions without an answer, as SQuAD 2.0 has them; else they are faulty.

    Raises:
        UserError: with all faults, each with the question's id.
    """
    loaded = sources.read(source, WORLD_KINDS, split, seed)
    unread = [f"{loaded.context.unit} {at} {text}" for at, text in loaded.context.faults]
    return questions_of(loaded.name, loaded.rows, on_bad_row, unread, unanswerable)


def questions_of(
    name: str,
    rows: Sequence[Any],
    on_bad_row: str = "error",
    faults: Sequence[str] = (),
    unanswerable: bool = False,
) -> tuple[list[Question], Counts]:
    """Rows in either form as questions. `name` and `faults`, of reading, are for the message.

    Raises:
        UserError: also when no question is left.
    """
    check_on_bad_row(on_bad_row)
    if any(map(is_raw_cmrc, rows)):
        raise UserError(
            f"{name} is in CMRC's own layout, which does not give the position of an answer in its passage; use the "
            "file of the same name in squad-style-data/ of CMRC's repository. 請改用 squad-style-data/ 中的同名檔案。"
        )
    kept: dict[str, Question] = {}
    realigned: list[str] = []
    bad: list[_Bad] = [_Bad("unreadable", fault, "") for fault in faults]
    for place, row in _flat(rows):
        fault = _fault(row, unanswerable)
        answers, moved = ((), False) if fault else _aligned(row)
        called = str(row["id"]) if isinstance(row, Mapping) and row.get("id") is not None else place
        if not fault and () in answers:
            missing = _answers(row)[answers.index(())][0]
            fault = "answer not in the passage", f"the answer {missing[:60]!r} is not in its passage"
        elif not fault and called in kept:
            fault = "duplicate id", "another question has this id"
        if fault:
            bad.append(_Bad(*fault, called))
            continue
        context, question = row["context"], row["question"].strip()
        kept[called] = Question(called, context, question, answers, text_hash(context), kind_of(question))
        realigned += [called] * moved
    if not kept and not bad:
        bad.append(_Bad("empty", "it holds no question", ""))
    if bad and (on_bad_row == "error" or not kept):
        raise _error(name, bad)
    dropped: dict[str, list[str]] = {}
    for one in bad:
        dropped.setdefault(one.fault, []).append(one.id or one.told)
    questions = list(kept.values())
    references = sum(len(question.answers) for question in questions)
    passages = len({question.group for question in questions})
    return questions, Counts(len(questions), passages, references, tuple(realigned), dropped)


class _Bad(NamedTuple):
    fault: str
    told: str
    id: str


def _error(name: str, bad: Sequence[_Bad]) -> UserError:
    lines = [f"question {one.id!r}: {one.told}" if one.id else one.told for one in bad[:SHOWN]]
    more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    count = "1 fault" if len(bad) == 1 else f"{len(bad)} faults"
    kinds = ", ".join(f"{count} {fault}" for fault, count in Counter(one.fault for one in bad).items())
    details = "".join(f"\n  {line}" for line in lines)
    return UserError(
        f"{name} is not valid SQuAD data, {count} ({kinds}):{details}{more}\n"
        "Fix the file, or leave these questions out with --on_bad_row drop. 請修正檔案，或用 --on_bad_row drop 略過。"
    )


# --- either form, a row a question ----------------------------------------------------------------------------------


def _flat(rows: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """(where it stands, {"id", "context", "question", "answers"} or what stands in its place) of each question."""
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping) or "paragraphs" not in row:
            yield f"row {number}", row
            continue
        paragraphs = row["paragraphs"]
        for at, paragraph in enumerate(paragraphs if is_list(paragraphs) else [paragraphs], start=1):
            place = f"article {number}, paragraph {at}"
            entries = paragraph.get("qas") if isinstance(paragraph, Mapping) else None
            if not is_list(entries):
                yield place, {"id": place, "qas": entries}
                continue
            for count, question in enumerate(entries, start=1):
                where = f"{place}, question {count}"
                own = question if isinstance(question, Mapping) else {"id": where, "question": question}
                yield where, {**own, "context": paragraph.get("context")}


def _answers(row: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """(text, start) of each answer in either form."""
    answers = row["answers"]
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text"), answers.get("answer_start")
        if not is_list(texts) or not is_list(starts) or len(texts) != len(starts):
            return [(None, None)]
        return list(zip(texts, starts, strict=True))
    objects = [one if isinstance(one, Mapping) else {} for one in answers]
    return [(one.get("text"), one.get("answer_start")) for one in objects]


def _fault(row: Any, unanswerable: bool) -> tuple[str, str] | None:
    """(kind, sentence) of the first thing that is wrong with a row's form."""
    if not isinstance(row, Mapping):
        return "wrong form", f"is {describe(row)}; give an object"
    if "qas" in row:
        return "wrong form", f"`qas` is {describe(row['qas'])}; give the list of questions"
    missing = [f"`{key}`" for key in ("id", "context", "question", "answers") if row.get(key) is None]
    if missing:
        return "wrong form", f"has no {', '.join(missing)}"
    for key, name in (("context", "passage"), ("question", "question")):
        if not isinstance(row[key], str):
            return "wrong form", f"`{key}` is {describe(row[key])}; give the {name}"
        if not row[key].strip():
            return f"empty {name}", f"its {name} is empty"
    if not isinstance(row["answers"], Mapping) and not is_list(row["answers"]):
        return "wrong form", f"`answers` is {describe(row['answers'])}"
    return _answer_fault(row, unanswerable)


def _answer_fault(row: Mapping[str, Any], unanswerable: bool) -> tuple[str, str] | None:
    answers = _answers(row)
    if not answers and not unanswerable:
        return "no answer", "has no answer; SQuAD 2.0, which has such questions, needs --scorer squad2"
    if unanswerable and contradicts(row.get("is_impossible"), answers):
        return "wrong form", f"`is_impossible` is {row['is_impossible']!r}, and it has {len(answers)} answers"
    for text, start in answers:
        if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
            return "wrong form", "an answer needs `text` and a whole number `answer_start`"
        if not text.strip():
            return "empty answer", "an answer is empty"
    return None


def _aligned(row: Mapping[str, Any]) -> tuple[tuple[tuple[str, int] | tuple[()], ...], bool]:
    """Answers at their nearest occurrence, () for one that stands nowhere; and whether one had to be moved."""
    aligned = []
    for text, start in _answers(row):
        at = nearest(row["context"], text, start)
        aligned.append(() if at is None else (text, at))
    moved = any(one and one[1] != start for one, (_, start) in zip(aligned, _answers(row), strict=True))
    return tuple(aligned), moved


def nearest(context: str, text: str, start: int) -> int | None:
    """Where `text` stands nearest to `start`, the first of two as near; None where it stands nowhere."""
    if start >= 0 and context.startswith(text, start):
        return start
    before = context.rfind(text, 0, max(0, start + len(text)))
    after = context.find(text, max(0, start))
    places = [at for at in (before, after) if at >= 0]
    return min(places, key=lambda at: abs(at - start)) if places else None
