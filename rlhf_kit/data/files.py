"""Rows of one file, by its suffix. Their content is not checked here."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pyarrow
import pyarrow.parquet

from rlhf_kit.data.faults import Context
from rlhf_kit.data.messages import own_keys
from rlhf_kit.data.rows import AT_ONCE, Holder
from rlhf_kit.data.suffixes import OTHERS, SUFFIXES, SUPPORTED, suffix_of
from rlhf_kit.data.unpacking import mapped, measure_parquet, text_of, unpacked
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

PAGE = 200  # characters
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
# (how many rows a part of a table has, what gives `size` of them from `start` on)
Part = tuple[int, Callable[[int, int], list[dict]]]


@dataclass
class Source:
    """Rows as they were found, with the name to call them by in a message."""

    name: str
    rows: Sequence[Any]
    context: Context = field(default_factory=Context)


def listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def read_file(path: Path, kinds: Sequence[str], held: Holder = list) -> Source:
    """Rows of one file by its suffix; faults of its syntax are added to the context.

    Args:
        held: what keeps the rows; other than a list, what has a row a line (or a batch of Parquet) is read bit by bit.
    """
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise _unread(path, suffix)
    if suffix.startswith(".txt") and not {"text", "prompts"} & set(kinds):
        raise UserError(f"{path} is plain text, but this stage takes {listed(kinds)}. {SUPPORTED}")
    form = suffix.removesuffix(".gz")
    if form == ".parquet":
        return _read_parquet(path, kinds, held)
    whole = {".json": _read_json} | ({".txt": _read_documents} if "text" in kinds else {})
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".txt": _read_prompts}
    most = MOST_JSON if form == ".json" else None  # whose values are counted where it is parsed
    has_rows, has_values = form not in whole, form in (".jsonl", ".csv")
    extent = Extent(path, has_rows, has_values, most, is_decoded=has_rows and held is not list)
    newline = "" if form == ".csv" else "\n"  # not U+2028, which may stand in a string
    if extent.is_decoded:
        with text_of(path, extent, newline) as file:
            _refuse_page(path, file.read(PAGE))
            file.seek(0)
            return readers[form](path, file, held)
    text = as_text(path, unpacked(path, extent))
    _refuse_page(path, text[:PAGE])
    return readers[form](path, io.StringIO(text, newline), held) if has_rows else whole[form](path, text, held)


def _refuse_page(path: Path, text: str) -> None:
    """Raises UserError for what a server or git gives in the place of a file."""
    begins = text.lstrip().lower()
    page = next((kind for sign, kind in _PAGES.items() if begins.startswith(sign)), None)
    if page is not None and (suffix_of(path) != ".txt" or "git" in page):
        raise UserError(f"{path} {page}: it begins with {text[:60].strip()!r}.")


def _read_documents(path: Path, text: str, held: Holder) -> Source:
    values = documents(text)
    refuse_crowd(path, "texts", len(values), len(text))
    return Source(str(path), held({"text": document} for document in values))


def _read_prompts(path: Path, file: TextIO, held: Holder) -> Source:
    """A prompt a line; lines without text are none."""
    numbers = array("Q")

    def rows() -> Iterator[dict]:
        for number, line in enumerate(file, start=1):
            if line.strip():
                numbers.append(number)
                yield {"prompt": line.removesuffix("\n").removesuffix("\r")}

    return Source(str(path), held(rows()), Context("line", numbers))


def _unread(path: Path, suffix: str) -> UserError:
    """A file whose suffix is none of ours; that of an archive may stand before .gz."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    advice = next((OTHERS[ending] for ending in endings if ending in OTHERS), None)
    if advice is None and suffix.endswith(".gz"):
        advice = "name it after its content, such as train.jsonl.gz"
    advice = f" {advice[0].upper()}{advice[1:]}." if advice else ""
    return UserError(f"{path}: files of the type {suffix or '(no suffix)'} cannot be read. {SUPPORTED}{advice}")


def _read_jsonl(path: Path, file: TextIO, held: Holder) -> Source:
    numbers, faults = array("Q"), []

    def rows() -> Iterator[Any]:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line.removesuffix("\n"))
            except ValueError as error:
                faults.append((number, f"is not valid JSON: {what(error)}; give one object per line"))
                continue
            faults.extend((number, fault) for fault in doubled(row))
            numbers.append(number)
            yield row

    return Source(str(path), held(rows()), Context("line", numbers, faults))


def _read_json(path: Path, text: str, held: Holder) -> Source:
    content = parse_document(path, text)
    if isinstance(content, dict):
        if isinstance(content, Doubled):
            raise UserError(f"{path}: the file has `{content.key}` twice, and one of them would be lost; keep one.")
        content = content.get("data", content)
    if not isinstance(content, list):
        raise UserError(f'{path} holds no list of rows; give [{{...}}, ...] or {{"data": [{{...}}, ...]}}.')
    refuse_crowd(path, "rows", len(content), len(text))
    faults = [(number, fault) for number, row in enumerate(content, start=1) for fault in doubled(row)]
    return Source(str(path), content if held is list else held(content), Context("row", None, faults))


class _Row(int):
    """The number of a row that does not stand in the line after it (the first has the header): said with its line."""

    line: int

    def __str__(self) -> str:
        return f"{int(self)} (line {self.line})"


class _Rows(Sequence):
    """The numbers of rows, by which line each begins in."""

    def __init__(self):
        self.numbers, self.lines = array("Q"), array("Q")

    def append(self, number: int, line: int) -> None:
        self.numbers.append(number)
        self.lines.append(line)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, at: int) -> int:
        return _numbered(self.numbers[at], self.lines[at])


def _read_csv(path: Path, file: TextIO, held: Holder) -> Source:
    numbers, faults = _Rows(), []
    csv.field_size_limit(1 << 30)  # a document is longer than the 128 KiB a cell may have by default
    _refuse_delimiter(path, file)
    file.seek(0)

    def rows() -> Iterator[dict[str, Any]]:
        reader = csv.reader(file, strict=True)
        line, number, header, unnamed = 1, 0, [], set()
        try:
            for cells in reader:
                if cells and not header:
                    header, unnamed = cells, _repeated(path, cells)
                elif cells:
                    number += 1
                    row, faults_of_row = _cells(header, unnamed, cells)
                    faults.extend((_numbered(number, line), fault) for fault in faults_of_row)
                    if not faults_of_row:
                        numbers.append(number, line)
                        yield row
                line = reader.line_num + 1
        except csv.Error as error:
            message = f"{path} is not valid CSV: {error} (in the record that begins on line {line})"
            raise UserError(f"{message}. Fix its quotes, or write the file again.") from error

    return Source(str(path), held(rows()), Context("row", numbers, faults))


def _numbered(number: int, line: int) -> int:
    if line == number + 1:
        return number
    row = _Row(number)
    row.line = line
    return row


def _refuse_delimiter(path: Path, lines: Iterable[str]) -> None:
    """Raises UserError where the first line has more names between other signs than between commas."""
    first = next((line for part in lines for line in part.splitlines() if line.strip()), "")
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


def _read_parquet(path: Path, kinds: Sequence[str], held: Holder) -> Source:
    is_whole = held is list or path.suffix.lower() == ".gz"
    content = unpacked(path) if is_whole else mapped(path)

    def parts() -> Iterator[Part]:
        try:
            for batch in pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content)).iter_batches(AT_ONCE):
                table = pyarrow.Table.from_batches([batch])
                yield len(table), lambda start, size, table=table: table.slice(start, size).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise _no_parquet(path, error) from error

    try:
        measure_parquet(path, content)
    except (pyarrow.ArrowException, OSError) as error:  # the latter for a foot that lies
        raise _no_parquet(path, error) from error
    return Source(str(path), held(row for rows in table_rows(str(path), parts()) for row in own_keys(rows, kinds)))


def _no_parquet(path: Path, error: Exception) -> UserError:
    message = f"{path} is not a Parquet file: {' '.join(str(error).split())[:200].rstrip('.')}"
    return UserError(f"{message}. Download it again, or give another file.")


def table_rows(name: str, parts: Iterable[Part]) -> Iterator[list[dict]]:
    """The rows of a table, some at a time. Raises UserError with the row of a text that is none."""
    before = 0
    for count, read in parts:
        try:
            yield read(0, count)
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
                f"{name}: row {before + low + 1} holds text that is not UTF-8 ({error.reason}). Write it again as "
                "UTF-8."
            ) from error
        before += count


_HEADING = re.compile(r"^ ?= [^=\n]*[^=\s] = ?$", re.MULTILINE)


def documents(text: str) -> list[str]:
    """Split where WikiText's level-1 headings (" = Title = ") are; text without one is one document."""
    starts = [match.start() for match in _HEADING.finditer(text)]
    if not starts:
        return [text]
    borders = sorted({0, *starts, len(text)})
    parts = [text[start:end] for start, end in zip(borders, borders[1:], strict=False)]
    return [part for part in parts if part.strip()]
