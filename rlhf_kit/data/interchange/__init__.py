"""Rankings in other projects' formats: read into the kit's ranked rows, and written from them.

A ranked row has `prompt` (text or messages), `completions`, `ranks` (1 = best, equal = tie), and where they are known
`margin`, `weight` and `labeler`.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_kit.data import shapes
from rlhf_kit.data.checks import ranks_of
from rlhf_kit.data.files import read_file
from rlhf_kit.data.formats import Context, report, sift, told_columns
from rlhf_kit.data.groups import EXTRAS, Row
from rlhf_kit.data.interchange.pairs import read_trl, write_arena, write_hh, write_trl
from rlhf_kit.data.interchange.published import read_oasst, read_summaries, read_ultrafeedback, read_webgpt
from rlhf_kit.data.interchange.records import Reader, Tally
from rlhf_kit.data.interchange.tools import read_argilla, read_label_studio, write_argilla, write_label_studio
from rlhf_kit.data.messages import completion_text, with_opening
from rlhf_kit.data.unread import notices, refused_columns
from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.inputs import missing
from rlhf_kit.storage import Folder

CONVERT = "convert"  # whose files `write` may replace
LABEL_STUDIO = "label-studio"

logger = logging.getLogger(__name__)
Writer = Callable[[Sequence[Mapping[str, Any]], Counter], list[Row]]


def _read_ranked(records: Sequence[Any], tally: Tally) -> list[Row]:
    return list(records)


def _write_ranked(rows: Sequence[Mapping[str, Any]], skipped: Counter) -> list[Row]:
    names = ("prompt", "completions", "ranks", *EXTRAS)
    return [{name: row[name] for name in names if row.get(name) is not None} for row in rows]


@dataclass(frozen=True)
class Format:
    """How records of one format are read and, where it can carry a ranking, written."""

    read: Reader
    write: Writer | None
    columns: tuple[str, ...]  # that every record has; by them a file of another format is recognised
    kind: str | None = None  # of the records, where they are rows of ours or, if `shaped`, read as such
    shaped: bool = False


FORMATS: dict[str, Format] = {
    "ranked": Format(_read_ranked, _write_ranked, ("prompt", "completions"), "ranked"),
    "trl": Format(read_trl, write_trl, ("chosen", "rejected"), "pairs"),
    "hh-rlhf": Format(read_trl, write_hh, ("chosen", "rejected"), "pairs", shaped=True),
    "summarize-from-feedback": Format(read_summaries, None, ("info", "summaries", "choice")),
    "webgpt": Format(read_webgpt, None, ("question", "answer_0", "answer_1")),
    "ultrafeedback": Format(read_ultrafeedback, None, ("instruction", "completions")),
    "nectar": Format(_read_ranked, None, ("prompt", "answers"), "ranked", shaped=True),
    "arena": Format(_read_ranked, write_arena, ("conversation_a", "conversation_b", "winner"), "ranked", shaped=True),
    "oasst": Format(read_oasst, None, ("message_tree_id", "prompt")),
    "argilla": Format(read_argilla, write_argilla, ("fields", "responses")),
    LABEL_STUDIO: Format(read_label_studio, write_label_studio, ("data", "annotations")),
}
WRITABLE = tuple(name for name, format in FORMATS.items() if format.write)


def read(
    path: str | Path, format: str, sides: tuple[str, str] | None = None, more: Sequence[str] = ()
) -> tuple[list[Row], dict[str, int]]:
    """(ranked rows, how many records or rankings were left out by reason) of a file in one of FORMATS.

    The file is .jsonl, .json, .csv or .parquet, packed as .gz or not. Every row keeps the contract of ranked rows.

    Args:
        sides: the fields that Label Studio's Pairwise showed on the left and on the right.
        more: columns to keep of our own ranked rows, if they have them.

    Raises:
        UserError: no such format or file, a file that cannot be parsed, or no ranking in it.
    """
    if sides and (format != LABEL_STUDIO or len(set(sides)) != 2):
        raise UserError(
            f"`sides` is {' '.join(sides)!r} for {format}; it names the two fields that a Pairwise of {LABEL_STUDIO} "
            "showed on the left and on the right."
        )
    of_format, source = _format(format), read_file(_existing(Path(path)), ("ranked",))
    kind, records = of_format.kind, source.rows
    if kind and of_format.shaped:
        records, _ = shapes.read(records, (kind,))
    faults = source.context.faults + [(0, fault) for fault in (refused_columns(records, kind) if kind else ())]
    if faults:
        raise report(source.name, faults, len(source.rows) + len(source.context.faults), source.context.unit)
    tally = Tally()
    rows, _, bad = sift(of_format.read(records, tally, **({"sides": sides} if sides else {})), "ranked", Context())
    tally.left_out.update({fault: len(numbers) for fault, numbers in bad.items()})
    left_out = {reason: count for reason, count in tally.left_out.items() if count}
    if not rows:
        raise UserError(
            f"{path} holds no ranking in the format {format}{_told(left_out)}.{_guess(source.rows, format)}"
        )
    known = [{name: value for name, value in row.items() if name not in more} for row in records] if more else records
    for notice in notices(known, kind) if kind else ():
        logger.warning("%s: %s", source.name, notice)
    for note, count in tally.noted.items():
        if count:
            logger.warning("%s: %s (%s of the rankings)", source.name, note, count)
    return [_ranked(row, more) for row in rows], left_out


def _ranked(row: Mapping[str, Any], more: Sequence[str] = ()) -> Row:
    """A ranking without fault in its canonical columns, and `more` that it has."""
    row = with_opening(row)
    completions = [completion_text(completion) for completion in row["completions"]]
    extras = {name: row[name] for name in (*EXTRAS, *more) if row.get(name) is not None}
    extras |= {"labeler": str(extras["labeler"])} if "labeler" in extras else {}
    return {"prompt": row["prompt"], "completions": completions, "ranks": ranks_of(row), **extras}


def write(rows: Iterable[Mapping[str, Any]], path: str | Path, format: str) -> dict[str, int]:
    """Write ranked rows as one of WRITABLE: one record a line in a .jsonl, a list of records in a .json.

    Returns how many rankings were left out by reason. The file is there whole or not at all.

    Raises:
        UserError: no such format, one that is read only, another suffix, nothing to write, a path out of reach, or a
            file that was not written so.
    """
    path = Path(path)
    writer = _format(format).write
    if writer is None:
        raise UserError(f"{format} can be read only; write {', '.join(WRITABLE)}.")
    skipped: Counter = Counter()
    records = writer(list(rows), skipped)
    left_out = {reason: count for reason, count in skipped.items() if count}
    if not records:
        raise UserError(f"there is nothing to write to {path} in the format {format}{_told(left_out)}.")
    write_records(records, path)
    return left_out


def write_records(records: Sequence[Row], path: Path) -> None:
    """One record a line in a .jsonl, a list of records in a .json; whole or not at all. Raises UserError."""
    if path.suffix not in (".json", ".jsonl"):
        raise UserError(f"{path} ends in {path.suffix or 'no suffix'!r}; give a .jsonl or a .json file to write.")
    try:
        Folder(path.parent, CONVERT).write(path.name, "".join(lines(records, path.suffix)))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def lines(records: Sequence[Row], suffix: str = ".jsonl") -> Iterator[str]:
    """A file of records by its suffix, piece by piece."""
    if suffix == ".json":
        yield json.dumps(records, ensure_ascii=False, indent=1) + "\n"
    else:
        yield from (json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise UserError(f"there is no format {name!r}; give one of {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def _existing(path: Path) -> Path:
    if not os.path.lexists(path):
        raise missing(path)
    return path


def _told(left_out: Mapping[str, int]) -> str:
    return " (" + "; ".join(f"{count} {reason}" for reason, count in left_out.items()) + ")" if left_out else ""


def _guess(records: Sequence[Any], format: str) -> str:
    """Which other format the records look like by their columns."""
    first = records[0] if records and isinstance(records[0], Mapping) else {}
    fits = [name for name, other in FORMATS.items() if name != format and first.keys() >= set(other.columns)]
    columns = told_columns(list(first))
    near = f" That looks like {' or '.join(fits)}." if fits else ""
    return f" The first record's columns are {columns}.{near} Give its format with --from, or another file."
