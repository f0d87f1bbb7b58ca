"""Rows of one file, by its suffix. What stands in them is not checked here."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from rlhf_kit.data.formats import Context
from rlhf_kit.data.messages import without_nulls
from rlhf_kit.errors import UserError

FORMATS = (".json", ".jsonl", ".parquet", ".csv", ".txt")
SUFFIXES = (*FORMATS, *(f"{suffix}.gz" for suffix in FORMATS))
# Endings of files that are not read, by what to do instead.
_ADVICE = {
    "unpack it, and name a file inside": "zip tar tgz tbz2 txz bz2 xz zst lz4 7z rar",
    "save it as .csv with commas, or as .jsonl": "tsv tab psv xls xlsx ods",
    "rename it to .jsonl": "ndjson jsonlines jl",
    "rename it to .parquet": "pq",
    "save it as .parquet": "arrow feather orc avro",
    "save it as .txt, or as .jsonl with one object a line": "md html xml pdf docx yaml yml pkl log",
}
_OTHERS = {f".{ending}": advice for advice, endings in _ADVICE.items() for ending in endings.split()}
_SUPPORTED = "Supported: .json, .jsonl, .parquet, .csv and, for text and prompts, .txt; each may be packed as .gz."
# A CSV cell is a string; these columns hold JSON, and a prompt or an answer does when it is a list of messages.
_JSON_COLUMNS = ("messages", "completions", "ranks", "scores", "label", "margin", "weight", "spans", "history")
_DIALOGUE_COLUMNS = ("prompt", "completion", "chosen", "rejected")


@dataclass
class Source:
    """Rows as they were found, with the name to call them by in a message."""

    name: str
    rows: list[Any]
    context: Context = field(default_factory=Context)


def suffix_of(path: Path) -> str:
    """ ".jsonl" or ".jsonl.gz", in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def is_file_name(path: Path) -> bool:
    """Whether a name ends as files do that are read here, or that people try."""
    return path.suffix.lower() in (*FORMATS, ".gz", *_OTHERS)


def listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def read_file(path: Path, kinds: Sequence[str]) -> Source:
    """Rows of one file by its suffix; faults of its syntax stand in the context."""
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: files of the type {suffix or '(no suffix)'} cannot be read. {_SUPPORTED}")
    if suffix.startswith(".txt") and not {"text", "prompts"} & set(kinds):
        raise UserError(f"{path} is plain text, but this stage takes {listed(kinds)}. {_SUPPORTED}")
    try:
        content = gzip.decompress(path.read_bytes()) if suffix.endswith(".gz") else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if suffix.startswith(".parquet"):
        return _read_parquet(path, content)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    readers: dict[str, Callable[[Path, str], Source]] = {
        ".json": _read_json,
        ".jsonl": _read_jsonl,
        ".csv": _read_csv,
        ".txt": _read_documents if "text" in kinds else _read_prompts,
    }
    return readers[suffix.removesuffix(".gz")](path, text)


def _read_documents(path: Path, text: str) -> Source:
    return Source(str(path), [{"text": document} for document in documents(text)])


def _read_prompts(path: Path, text: str) -> Source:
    """A prompt a line; lines without text are none."""
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    context = Context("line", [number for number, _ in numbered])
    return Source(str(path), [{"prompt": line.removesuffix("\r")} for _, line in numbered], context)


def _read_jsonl(path: Path, text: str) -> Source:
    rows, numbers, faults = [], [], []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may stand in a string
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
            numbers.append(number)
        except json.JSONDecodeError as error:
            faults.append((number, f"is not valid JSON: {error.msg} (column {error.colno}); give one object a line"))
    return Source(str(path), rows, Context("line", numbers, faults))


def _read_json(path: Path, text: str) -> Source:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        advice = " One object a line is the format of .jsonl: rename the file." if error.msg == "Extra data" else ""
        raise UserError(f"{path} is not valid JSON: {error.msg} ({where}).{advice}") from error
    if isinstance(content, dict):
        content = content.get("data", content)
    if not isinstance(content, list):
        raise UserError(f'{path} holds no list of rows; give [{{...}}, ...] or {{"data": [{{...}}, ...]}}.')
    return Source(str(path), content)


def _read_csv(path: Path, text: str) -> Source:
    rows, faults = [], []
    csv.field_size_limit(1 << 30)  # a document is longer than the 128 KiB a cell may have by default
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for number, cells in enumerate(reader, start=1):
            if None in cells:
                faults.append(
                    (number, f"has more cells than the {len(reader.fieldnames or ())} columns; quote the commas")
                )
            row = {}
            for column, cell in cells.items():
                if column is not None:
                    row[column], fault = _cell(column, cell)
                    faults += [(number, fault)] if fault else []
            rows.append(row)
    except csv.Error as error:
        raise UserError(f"{path} is not valid CSV: {error} (line {reader.line_num}).") from error
    bad = {number for number, _ in faults}
    numbers = [number for number in range(1, len(rows) + 1) if number not in bad]
    return Source(str(path), [rows[number - 1] for number in numbers], Context("row", numbers, faults))


def _cell(column: str, cell: str | None) -> tuple[Any, str | None]:
    """(value, fault) of a cell. An empty cell of a column that holds JSON is nothing; elsewhere it is empty text."""
    if cell is None:
        return None, f"has no cell for `{column}`"
    if column in _JSON_COLUMNS:
        if not cell.strip():
            return None, None
        try:
            return json.loads(cell.lower() if column == "label" else cell), None
        except json.JSONDecodeError as error:
            return None, f"`{column}` is not valid JSON: {error.msg} ({cell[:40]!r})"
    if column in _DIALOGUE_COLUMNS and cell.lstrip().startswith("[{"):
        try:
            return json.loads(cell), None
        except json.JSONDecodeError:
            return cell, None  # text may begin with any characters
    return cell, None


def _read_parquet(path: Path, content: bytes) -> Source:
    try:
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
        return Source(str(path), without_nulls(rows))
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a Parquet file: {str(error).splitlines()[0]}") from error


_HEADING = re.compile(r"^ ?= [^=\n]*[^=\s] = ?$", re.MULTILINE)


def documents(text: str) -> list[str]:
    """Split where WikiText's level-1 headings (" = Title = ") stand; text without one is one document."""
    starts = [match.start() for match in _HEADING.finditer(text)]
    if not starts:
        return [text]
    borders = sorted({0, *starts, len(text)})
    parts = [text[start:end] for start, end in zip(borders, borders[1:], strict=False)]
    return [part for part in parts if part.strip()]
