"""Rows of one file, by its suffix. Their content is not checked here."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from rlhf_kit.data.faults import Context
from rlhf_kit.data.messages import own_keys
from rlhf_kit.data.suffixes import OTHERS, SUFFIXES, SUPPORTED, suffix_of
from rlhf_kit.data.unpacking import measure_parquet, unpacked
from rlhf_kit.errors import UserError
from rlhf_kit.inputs import (
    MOST_JSON,
    Doubled,
    Extent,
    as_text,
    doubled,
    parse_document,
    parse_json,
    refuse_crowd,
    what,
)

# What comes in a file's place, by how it begins.
_PAGES = {
    "<!doctype": "is a web page, perhaps an error page; download the file itself",
    "<html": "is a web page, perhaps an error page; download the file itself",
    "<?xml": "is XML, perhaps a server's error message; download the file itself",
    "version https://git-lfs": "is a Git LFS pointer, not the file; fetch the file itself (git lfs pull)",
}
# A CSV cell is a string; these columns hold JSON, and a prompt or an answer does when it is a list of messages.
_JSON_COLUMNS = ("messages", "completions", "ranks", "scores", "label", "margin", "weight", "spans", "history")
_DIALOGUE_COLUMNS = ("prompt", "completion", "chosen", "rejected")


@dataclass
class Source:
    """Rows as they were found, with the name to call them by in a message."""

    name: str
    rows: list[Any]
    context: Context = field(default_factory=Context)


def listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def read_file(path: Path, kinds: Sequence[str]) -> Source:
    """Rows of one file by its suffix; faults of its syntax are added to the context."""
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise _unread(path, suffix)
    if suffix.startswith(".txt") and not {"text", "prompts"} & set(kinds):
        raise UserError(f"{path} is plain text, but this stage takes {listed(kinds)}. {SUPPORTED}")
    form = suffix.removesuffix(".gz")
    if form == ".parquet":
        return _read_parquet(path, unpacked(path), kinds)
    readers: dict[str, Callable[[Path, str], Source]] = {
        ".json": _read_json,
        ".jsonl": _read_jsonl,
        ".csv": _read_csv,
        ".txt": _read_documents if "text" in kinds else _read_prompts,
    }
    has_rows = readers[form] not in (_read_json, _read_documents)
    most = MOST_JSON if form == ".json" else None  # whose values are counted where it is parsed
    extent = Extent(path, has_rows, has_values=form in (".jsonl", ".csv"), most=most)
    text = as_text(path, unpacked(path, extent))
    _refuse_page(path, text)
    return readers[form](path, text)


def _refuse_page(path: Path, text: str) -> None:
    """Raises UserError for what a server or git gives in the place of a file."""
    begins = text[:200].lstrip().lower()
    page = next((kind for sign, kind in _PAGES.items() if begins.startswith(sign)), None)
    if page is not None and (suffix_of(path) != ".txt" or "git" in page):
        raise UserError(f"{path} {page}: it begins with {text[:60].strip()!r}.")


def _read_documents(path: Path, text: str) -> Source:
    values = documents(text)
    refuse_crowd(path, "texts", len(values), len(text))
    return Source(str(path), [{"text": document} for document in values])


def _read_prompts(path: Path, text: str) -> Source:
    """A prompt a line; lines without text are none."""
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    context = Context("line", [number for number, _ in numbered])
    return Source(str(path), [{"prompt": line.removesuffix("\r")} for _, line in numbered], context)


def _unread(path: Path, suffix: str) -> UserError:
    """A file whose suffix is none of ours; that of an archive may stand before .gz."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    advice = next((OTHERS[ending] for ending in endings if ending in OTHERS), None)
    if advice is None and suffix.endswith(".gz"):
        advice = "name it after its content, such as train.jsonl.gz"
    advice = f" {advice[0].upper()}{advice[1:]}." if advice else ""
    return UserError(f"{path}: files of the type {suffix or '(no suffix)'} cannot be read. {SUPPORTED}{advice}")


def _read_jsonl(path: Path, text: str) -> Source:
    rows, numbers, faults = [], [], []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may stand in a string
        if not line.strip():
            continue
        try:
            rows.append(parse_json(line))
            numbers.append(number)
        except ValueError as error:
            faults.append((number, f"is not valid JSON: {what(error)}; give one object per line"))
    faults += [(number, fault) for number, row in zip(numbers, rows, strict=True) for fault in doubled(row)]
    return Source(str(path), rows, Context("line", numbers, faults))


def _read_json(path: Path, text: str) -> Source:
    content = parse_document(path, text)
    if isinstance(content, dict):
        if isinstance(content, Doubled):
            raise UserError(f"{path}: the file has `{content.key}` twice, and one of them would be lost; keep one.")
        content = content.get("data", content)
    if not isinstance(content, list):
        raise UserError(f'{path} holds no list of rows; give [{{...}}, ...] or {{"data": [{{...}}, ...]}}.')
    refuse_crowd(path, "rows", len(content), len(text))
    faults = [(number, fault) for number, row in enumerate(content, start=1) for fault in doubled(row)]
    return Source(str(path), content, Context("row", None, faults))


class _Row(int):
    """The number of a row that does not stand in the line after it (the first has the header): said with its line."""

    line: int

    def __str__(self) -> str:
        return f"{int(self)} (line {self.line})"


def _read_csv(path: Path, text: str) -> Source:
    rows, faults = [], []
    csv.field_size_limit(1 << 30)  # a document is longer than the 128 KiB a cell may have by default
    _refuse_delimiter(path, text)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line, header, unnamed = 1, [], set()
    try:
        for cells in reader:
            if cells and not header:
                header, unnamed = cells, _repeated(path, cells)
            elif cells:
                number = _numbered(len(rows) + 1, line)
                row, faults_of_row = _cells(header, unnamed, cells)
                rows.append((number, row))
                faults += [(number, fault) for fault in faults_of_row]
            line = reader.line_num + 1
    except csv.Error as error:
        message = f"{path} is not valid CSV: {error} (in the record that begins on line {line})"
        raise UserError(f"{message}. Fix its quotes, or write the file again.") from error
    bad = {number for number, _ in faults}
    good = [(number, row) for number, row in rows if number not in bad]
    return Source(str(path), [row for _, row in good], Context("row", [number for number, _ in good], faults))


def _numbered(number: int, line: int) -> int:
    if line == number + 1:
        return number
    row = _Row(number)
    row.line = line
    return row


def _refuse_delimiter(path: Path, text: str) -> None:
    """Raises UserError where the first line has more names between other signs than between commas."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    counts = {sign: len(next(csv.reader([first], delimiter=sign))) for sign in ",;\t|"}
    sign = max(counts, key=counts.get)
    if counts[sign] > counts[","]:
        name = {";": "semicolons", "\t": "tabs", "|": "the sign |"}[sign]
        raise UserError(
            f"{path} is separated by {name}, not by commas: its first line is {first[:80]!r}. Save it as CSV with "
            f"commas (pandas: read_csv(..., sep={sign!r}).to_csv(..., index=False)), or as .jsonl."
        )


def _repeated(path: Path, names: list[str]) -> set[str]:
    """The empty names that several columns have. Raises UserError for others, told apart by blanks or not at all."""
    counts = Counter(name.strip() for name in names)
    twice = listed(list(dict.fromkeys(name for name in names if name.strip() and counts[name.strip()] > 1)))
    if twice:
        raise UserError(
            f"{path}: several columns have the same name: {twice}. One of each would be lost; remove or rename it."
        )
    return {name for name, count in Counter(names).items() if count > 1}


def _cells(header: list[str], unnamed: set[str], cells: list[str]) -> tuple[dict[str, Any], list[str]]:
    """A row by the names of its columns, and what is wrong with it."""
    row, faults = {}, []
    if len(cells) > len(header):
        faults.append(f"has more cells than the {len(header)} columns; quote the commas")
    for column, cell in itertools.zip_longest(header, cells[: len(header)]):
        if column in unnamed:
            if cell:
                faults.append(f"has {cell[:40]!r} in a column without a name; give it one, or remove it")
            continue
        row[column], fault = _cell(column, cell)
        faults += [fault] if fault else []
    return row, faults


def _cell(column: str, cell: str | None) -> tuple[Any, str | None]:
    """(value, fault) of a cell. An empty cell of a column that holds JSON is nothing; elsewhere it is empty text."""
    if cell is None:
        return None, f"has no cell for `{column}`"
    if column in _JSON_COLUMNS:
        if not cell.strip():
            return None, None
        return _json_cell(column, cell.lower() if column == "label" else cell)
    if column in _DIALOGUE_COLUMNS and cell.lstrip().startswith("[{"):
        value, fault = _json_cell(column, cell)
        return (cell, None) if fault and value is None else (value, fault)  # text may begin with any characters
    return cell, None


def _json_cell(column: str, cell: str) -> tuple[Any, str | None]:
    try:
        value = parse_json(cell)
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        return None, f"`{column}` is not valid JSON: {reason} ({cell[:40]!r})"
    return value, next((f"`{column}`: {fault}" for fault in doubled(value)), None)


def _read_parquet(path: Path, content: bytes, kinds: Sequence[str]) -> Source:
    try:
        measure_parquet(path, content)
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError) as error:  # the latter for a foot that lies
        message = f"{path} is not a Parquet file: {' '.join(str(error).split())[:200].rstrip('.')}"
        raise UserError(f"{message}. Download it again, or give another file.") from error
    rows = table_rows(str(path), len(table), lambda start, size: table.slice(start, size).to_pylist())
    return Source(str(path), own_keys(rows, kinds))


def table_rows(name: str, count: int, read: Callable[[int, int], list[dict]]) -> list[dict]:
    """All rows of a table, `read(start, size)` some of them. Raises UserError with the row of a text that is none."""
    try:
        return read(0, count)
    except OverflowError as error:
        raise UserError(f"{name} contains an invalid date ({error}). Fix or remove it.") from error
    except UnicodeDecodeError as error:
        low, high = 0, count  # the first bad row is in [low, high)
        while high - low > 1:
            middle = (low + high) // 2
            try:
                read(low, middle - low)
                low = middle
            except UnicodeDecodeError:
                high = middle
        raise UserError(
            f"{name}: row {low + 1} holds text that is not UTF-8 ({error.reason}). Write it again as UTF-8."
        ) from error


_HEADING = re.compile(r"^ ?= [^=\n]*[^=\s] = ?$", re.MULTILINE)


def documents(text: str) -> list[str]:
    """Split where WikiText's level-1 headings (" = Title = ") are; text without one is one document."""
    starts = [match.start() for match in _HEADING.finditer(text)]
    if not starts:
        return [text]
    borders = sorted({0, *starts, len(text)})
    parts = [text[start:end] for start, end in zip(borders, borders[1:], strict=False)]
    return [part for part in parts if part.strip()]
