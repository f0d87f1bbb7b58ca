"""Where rows come from: files, folders, the Hugging Face hub and the embedded world. Nothing is checked here."""

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

import datasets
import pyarrow
import pyarrow.parquet

from rlhf_kit import world
from rlhf_kit.data.formats import KINDS, Context
from rlhf_kit.errors import UserError, did_you_mean

WORLD = "world"
WORLD_SPLITS = ("train", "test")
_SPLITS = {"train", "test", "validation", "valid", "dev", "val"}
FORMATS = (".json", ".jsonl", ".parquet", ".csv", ".txt")
SUFFIXES = (*FORMATS, *(f"{suffix}.gz" for suffix in FORMATS))
_SUPPORTED = "Supported: .json, .jsonl, .parquet, .csv and, for text, .txt; each may be packed as .gz."
# A CSV cell is a string; these columns hold JSON, and a prompt or an answer does when it is a list of messages.
_JSON_COLUMNS = ("messages", "completions", "ranks", "label", "margin")
_DIALOGUE_COLUMNS = ("prompt", "completion", "chosen", "rejected")


@dataclass
class Source:
    """Rows as they were found, with the name to call them by in a message."""

    name: str
    rows: list[Any]
    context: Context = field(default_factory=Context)


def read(source: str, kinds: Sequence[str], split: str, seed: int) -> Source:
    """Rows of a world kind, a file (which is taken whole, whatever `split`), a folder's split or a hub dataset's."""
    if source == WORLD or source.startswith(f"{WORLD}:"):
        return _read_world(source, kinds, split, seed)
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, kinds, split)
    if path.exists():
        return read_file(path, kinds)
    if _looks_like_path(source):
        raise _missing(path)
    return _read_hub(source, split)


def _looks_like_path(source: str) -> bool:
    return source.count("/") > 1 or source.startswith(("/", "~", ".")) or _suffix(Path(source)) in SUFFIXES


def _suffix(path: Path) -> str:
    """ ".jsonl" or ".jsonl.gz", in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def _missing(path: Path) -> UserError:
    folder = path.parent
    if not folder.is_dir():
        return UserError(f"{path} does not exist, nor does the folder {folder}.")
    near = did_you_mean(path.name, sorted(entry.name for entry in folder.iterdir()))
    return UserError(f"{path} does not exist.{near}")


def _read_world(source: str, kinds: Sequence[str], split: str, seed: int) -> Source:
    kind = source.partition(":")[2] or kinds[0]
    if kind not in kinds:
        raise UserError(
            f"{source}: {kind!r} is not a kind of data for this stage, which takes {_listed(kinds)}."
            f"{did_you_mean(kind, kinds)}"
        )
    if split not in WORLD_SPLITS:
        raise UserError(
            f"{source} has no split {split!r}; it has 'train' and 'test'.{did_you_mean(split, WORLD_SPLITS)}"
        )
    return Source(f"{WORLD}:{kind} ({split})", world.rows(kind, split, seed=seed))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def read_file(path: Path, kinds: Sequence[str]) -> Source:
    """Rows of one file by its suffix; faults of its syntax stand in the context."""
    suffix = _suffix(path)
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: files of the type {suffix or '(no suffix)'} cannot be read. {_SUPPORTED}")
    if suffix.startswith(".txt") and "text" not in kinds:
        raise UserError(f"{path} is plain text, but this stage takes {_listed(kinds)}. {_SUPPORTED}")
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
        ".txt": lambda path, text: Source(str(path), [{"text": document} for document in documents(text)]),
    }
    return readers[suffix.removesuffix(".gz")](path, text)


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
        return Source(str(path), pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist())
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


def _read_folder(folder: Path, kinds: Sequence[str], split: str) -> Source:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return _read_saved(folder, split)
    found: dict[str, list[Path]] = {}
    for path in sorted(entry for entry in [*folder.glob("*"), *folder.glob("data/*")] if entry.is_file()):
        if _suffix(path) in SUFFIXES:
            # The hub's shards: train-00000-of-00002.parquet
            name = re.sub(r"-\d+-of-\d+$", "", path.name[: -len(_suffix(path))])
            found.setdefault(name, []).append(path)
    texts = [path for paths in found.values() for path in paths if _suffix(path).startswith(".txt")]
    if split in found:
        paths = found[split]
    elif texts and "text" in kinds and not found.keys() & _SPLITS:
        paths = texts
    else:
        raise _no_split(folder, split, found)
    if len({_suffix(path) for path in paths}) > 1 or (len(paths) > 1 and not re.search(r"-\d+-of-\d+", paths[0].name)):
        if paths is not texts:
            names = ", ".join(path.name for path in paths)
            raise UserError(f"{folder} has more than one file for the split {split!r}: {names}. Name one of them.")
    parts = [read_file(path, kinds) for path in paths]
    if len(parts) == 1:
        return parts[0]
    return _joined(str(folder), parts)


def _joined(name: str, parts: Sequence[Source]) -> Source:
    """Several files as one source; a fault of reading names its file, rows are numbered through."""
    faults = [
        (0, f"{part.name}, {part.context.unit} {at}: {text}") for part in parts for at, text in part.context.faults
    ]
    return Source(name, [row for part in parts for row in part.rows], Context("row", None, faults))


def _no_split(folder: Path, split: str, found: dict[str, list[Path]]) -> UserError:
    splits = sorted(found.keys() & _SPLITS)
    if splits:
        return UserError(f"{folder} has no split {split!r}; it has {_listed(splits)}.{did_you_mean(split, splits)}")
    entries = sorted(entry.name for entry in folder.iterdir())
    inside = (", ".join(entries[:8]) + (", ..." if len(entries) > 8 else "")) or "nothing"
    return UserError(
        f"{folder} has no file for the split {split!r}, such as {split}.jsonl; it holds: {inside}. "
        "Name the file itself, or rename it."
    )


def _read_saved(folder: Path, split: str) -> Source:
    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise UserError(f"{folder} is no folder that `datasets` saved in full: {_first_line(error)}") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise UserError(
                f"{folder} has no split {split!r}; it has {_listed(list(saved))}.{did_you_mean(split, list(saved))}"
            )
        saved = saved[split]
    return Source(str(folder), saved.to_list())


def _read_hub(source: str, split: str) -> Source:
    name, _, config = source.partition(":")
    try:
        loaded = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # the hub client raises a dozen unrelated types: no network, no such id, no such config
        near = did_you_mean(source, [WORLD, *(f"{WORLD}:{kind}" for kind in KINDS)])
        raise UserError(
            f"{source!r} is no local file or folder, and it could not be loaded from the Hugging Face hub "
            f"(split {split!r}): {_first_line(error)} Check the id and the connection, or give a local file.{near}"
        ) from None
    return Source(f"{source} ({split})", loaded.to_list())


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip()
    return line if line.endswith(".") else f"{line}."
