"""Text, JSON and YAML of files, read within limits: a small file may hang a reader or fill the memory."""

from __future__ import annotations

import codecs
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rlhf_kit.errors import UserError, did_you_mean

DEEPEST = 100  # levels of lists and objects; Python's own functions give up at some hundreds
MOST_JSON, MOST_YAML = 2**28, 2**18  # bytes of a file that is parsed whole; YAML is parsed at some 100 KB a second
LONGEST_LINE = 2**26  # bytes of a line that is a row
# What any file may have of them, and the bytes that each further one has to bring: in memory it takes some hundreds.
MOST = {"lines": (2**21, 32), "rows": (2**21, 32), "texts": (2**21, 32), "values": (2**22, 8)}
MOST_WRITTEN = 2**20  # characters and values of a YAML file with its anchors written out
_MEND = "Fix it, or give another file"
_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
# First bytes of files under another's name.
_MAGIC = {
    b"\x1f\x8b": "It is compressed by gzip: give it a name that ends in .gz.",
    b"PK\x03\x04": "It is a .zip archive: unpack it, and name a file inside.",
    b"BZh": "It is compressed by bzip2: decompress it.",
    b"\xfd7zXZ": "It is compressed by xz: decompress it.",
    b"\x28\xb5\x2f\xfd": "It is compressed by zstd: decompress it.",
    b"PAR1": "It is a Parquet file: give it a name that ends in .parquet.",
    b"\xff\xfe": "It is UTF-16: save it as UTF-8.",
    b"\xfe\xff": "It is UTF-16: save it as UTF-8.",
}


# --- files ----------------------------------------------------------------------------------------------------------


def check_regular(path: Path, most: int | None = None) -> None:
    """Raises UserError for what is no file, such as a pipe, which might never end; for more bytes than `most`."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise unread(path, error) from error
    kind = next((kind for is_kind, kind in _KINDS.items() if is_kind(status.st_mode)), None)
    if status.st_dev in _kernel_devices():  # some of these never end, and none has a size
        kind = kind or "the kernel's"
    if kind is not None:
        raise UserError(f"{path} is {kind}; give a file.")
    if most is not None and status.st_size > most:
        raise too_large(path, status.st_size, most)


@cache
def _kernel_devices() -> set[int]:
    return {folder.stat().st_dev for folder in (Path("/proc"), Path("/sys")) if folder.is_mount()}


def too_large(path: Path, size: int, most: int) -> UserError:
    message = f"{path} has {size:,} bytes or more; at most {most:,} of such a file are read"
    return UserError(f"{message}. Give another file, or split it.")


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """Raises UserError for what cannot be read, as `check_regular` does."""
    check_regular(path, most)
    try:
        return path.read_bytes()
    except OSError as error:
        raise unread(path, error) from error


def unread(path: Path, error: Exception) -> UserError:
    """What to say of a file that is not there, or may not be read."""
    shown = str(path) if len(str(path)) < 200 else f"{str(path)[:200]}..."
    reason = getattr(error, "strerror", None) or error
    return UserError(f"{shown} cannot be read: {reason}. Give an existing, readable file.")


def missing(path: Path) -> UserError:
    """What to say of a path where nothing is."""
    folder, near = path.parent, ""
    if folder.is_dir():
        near = did_you_mean(path.name, sorted(os.listdir(folder)))
    else:
        near = f" {folder} is {'no folder' if folder.exists() else 'not there either'}."
    return UserError(f"{path} does not exist.{near} Give an existing path.")


def as_text(path: Path, content: bytes) -> str:
    """UTF-8, with or without a byte order mark. Raises UserError with the line of what is none, such as a NUL."""
    refuse_nul(path, content)
    mark = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + mark
        raise _no_text(path, content, at, content.count(b"\n", 0, at) + 1) from error


def refuse_nul(path: Path, content: bytes, start: int = 0, line: int = 1) -> None:
    """Raises UserError for a NUL byte in this piece, which starts with byte `start`, in `line`, of a text."""
    at = content.find(b"\0")
    if at >= 0:
        raise _no_text(path, content if not start else b"", start + at, line + content.count(b"\n", 0, at))


def _no_text(path: Path, content: bytes, at: int, line: int) -> UserError:
    advice = "It holds a NUL byte: is it UTF-16, or not text at all? Save it as UTF-8."
    other = advice if b"\0" in content[at : at + 1] or not content else "Save it as UTF-8."
    kind = next((kind for magic, kind in _MAGIC.items() if content.startswith(magic)), other)
    return UserError(f"{path} is not UTF-8 text (line {line}, byte {at}). {kind}")


def read_text(path: Path, most: int = MOST_JSON) -> str:
    """A whole file. Raises UserError as `read_bytes` and `as_text` do."""
    return as_text(path, read_bytes(path, most))


@dataclass
class Extent:
    """The extent of a text, added up piece by piece before any of it is kept: a small file may fill the memory.

    Attributes:
        has_rows: its lines are rows, and none may be endless.
        has_values: it is JSON or CSV, where commas and brackets stand between values.
        is_decoded: it is read bit by bit, and what is not UTF-8 is found here.
        most: bytes that are read of it, None for any number.
        line: bytes of the line that has not ended.
    """

    path: Path
    has_rows: bool
    has_values: bool
    most: int | None = None
    is_decoded: bool = False
    size: int = 0
    lines: int = 0
    line: int = 0
    values: int = 0
    begins: bytes = b""
    decoder: codecs.IncrementalDecoder = field(default_factory=codecs.getincrementaldecoder("utf-8"))

    def add(self, piece: bytes) -> None:
        """Raises UserError for a NUL, for a row that does not end, and for more than `most`."""
        refuse_nul(self.path, piece, self.size, self.lines + 1)
        if self.is_decoded:
            self._decode(piece)
        self.size += len(piece)
        if self.most is not None and self.size > self.most:
            raise too_large(self.path, self.size, self.most)
        self.line = len(piece) - piece.rfind(b"\n") - 1 + (self.line if b"\n" not in piece else 0)
        self.lines += piece.count(b"\n")
        self.values += sum(map(piece.count, (b",", b"[", b"{")))
        if self.has_rows and self.line > LONGEST_LINE:
            message = f"{self.path} holds a line of more than {LONGEST_LINE // 2**20} MiB"
            raise UserError(f"{message}, and a line is a row. Give another file, or break it into rows.")

    def _decode(self, piece: bytes, is_last: bool = False) -> None:
        kept = len(self.decoder.getstate()[0])  # bytes of a character that the last piece began
        self.begins = self.begins or piece[:16]
        try:
            self.decoder.decode(piece, is_last)
        except UnicodeDecodeError as error:
            line = self.lines + piece.count(b"\n", 0, max(error.start - kept, 0)) + 1
            raise _no_text(self.path, self.begins, self.size + error.start - kept, line) from error

    def refuse_crowds(self) -> None:
        """At the end. Raises UserError where far more stands in the text than its size says: as a file, of rows."""
        if self.is_decoded:
            self._decode(b"", is_last=True)
        if self.has_rows:
            refuse_crowd(self.path, "lines", self.lines, self.path.stat().st_size)
        if self.has_values:
            refuse_crowd(self.path, "values", self.values, self.size)


def refuse_crowd(path: Path | str, kind: str, count: int, size: int) -> None:
    """Raises UserError where a file of `size` bytes holds more of a `kind` of MOST than are read of it."""
    free, each = MOST[kind]
    most = free + size // each
    if count > most:
        message = f"{path} has {count:,} {kind} in {size:,} bytes; a file this small may hold at most {most:,}"
        raise UserError(f"{message}. Give another file, or split it into some.")


# --- JSON -----------------------------------------------------------------------------------------------------------


class Doubled(dict):
    """An object that has `key` twice: one of the two would be lost."""

    key: str


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    object_ = dict(members)
    if len(object_) == len(members):
        return object_
    object_, names = Doubled(object_), set()
    object_.key = next(name for name, _ in members if name in names or names.add(name))
    return object_


_DECODER = json.JSONDecoder(object_pairs_hook=_object)  # made once: a file is parsed line by line


def parse_json(text: str, as_object: Callable[[list[tuple[str, Any]]], Any] = _object) -> Any:
    """Raises ValueError for what is not JSON, also where it is nested too deeply or a number is too long.

    `as_object`: what becomes of an object's members; by default one that has a key twice is a `Doubled`.
    """
    try:
        decoder = _DECODER if as_object is _object else json.JSONDecoder(object_pairs_hook=as_object)
        value = decoder.decode(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:
        raise ValueError("it has a number of thousands of digits") from None
    if text.count("[") + text.count("{") > DEEPEST and _is_deep(value):
        raise ValueError(f"it is nested too deeply, in more than {DEEPEST} levels")
    return value


def _members(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()


def _is_deep(value: Any) -> bool:
    """Whether lists and objects stand in one another by more than DEEPEST levels."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [member for each in level if isinstance(each, dict | list | tuple) for member in _members(each)]
    return any(isinstance(each, dict | list | tuple) for each in level)


def doubled(value: Any) -> Iterator[str]:
    """What to say of objects in `value`, at any depth, that have a key twice."""
    if isinstance(value, Doubled):
        yield f"an object has `{value.key[:80]}` twice, and one of them would be lost; keep one, or rename it"
    for member in _members(value):
        yield from doubled(member)


def what(error: ValueError) -> str:
    """What is wrong with a piece of JSON, and in which of its columns."""
    return f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else str(error)


def parse_document(path: Path, text: str, as_object: Callable[[list[tuple[str, Any]]], Any] = _object) -> Any:
    """The value of a .json file's text. Raises UserError for what is not JSON, or has far more values than bytes."""
    refuse_crowd(path, "values", sum(map(text.count, ",[{")), len(text))
    try:
        return parse_json(text, as_object)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        is_rows = error.msg == "Extra data"
        advice = "A file of one object per line is .jsonl: rename it" if is_rows else _MEND
        raise UserError(f"{path} is not valid JSON: {error.msg} ({where}). {advice}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}. {_MEND}.") from error


def read_json(path: Path, as_object: Callable[[list[tuple[str, Any]]], Any] = _object) -> Any:
    """The value of a file that is JSON. Raises UserError: cannot be read, no JSON, an object with a key twice."""
    value = parse_document(path, read_text(path), as_object)
    fault = next(doubled(value), None)
    if fault is not None:
        raise UserError(f"{path}: {fault}.")
    return value


# --- YAML -----------------------------------------------------------------------------------------------------------


class Loader(yaml.SafeLoader):
    """Refuses a key that is written twice."""


def _mapping(loader: Loader, node: yaml.MappingNode) -> dict:
    loader.flatten_mapping(node)
    result = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if isinstance(key, dict | list | set):
            raise yaml.MarkedYAMLError(problem=f"a key is a list or a mapping (line {line}); give a name")
        if key in result:
            raise yaml.MarkedYAMLError(problem=f"the key {key!r} appears twice (again in line {line})")
        result[key] = loader.construct_object(value_node, deep=True)
    return result


Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str, loader: type[yaml.SafeLoader] = Loader) -> Any:
    """Raises ValueError for what is no YAML, is nested too deeply, or grows too large by its anchors."""
    if len(text) > MOST_YAML:
        raise ValueError(f"it has {len(text):,} characters; at most {MOST_YAML:,} of YAML are read")
    try:
        reader = loader(text)
        node = reader.get_single_node()
        if node is None:
            return None
        _measure(node, {}, 0)
        return reader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:  # of tags such as !!int x
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"a value does not match its notation or tag ({reason})") from error


def _measure(node: yaml.Node, sizes: dict[int, int | None], depth: int) -> int:
    """Characters and values of a node with its anchors written out. Raises YAMLError beyond the bounds."""
    if depth > DEEPEST:
        raise yaml.YAMLError(f"it is nested too deeply, in more than {DEEPEST} levels")
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value)
    if id(node) in sizes:
        if sizes[id(node)] is None:
            raise yaml.YAMLError("an anchor contains itself")
        return sizes[id(node)]
    sizes[id(node)] = None
    parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
    sizes[id(node)] = size = 1 + sum(_measure(part, sizes, depth + 1) for part in parts)
    if size > MOST_WRITTEN:
        raise yaml.YAMLError(f"with its anchors written out it has more than {MOST_WRITTEN:,} characters")
    return size


def read_yaml(path: Path, loader: type[yaml.SafeLoader] = Loader) -> Any:
    """The value of a YAML file. Raises UserError as `read_text` does, and for what `parse_yaml` refuses."""
    text = read_text(path, MOST_YAML)
    try:
        return parse_yaml(text, loader)
    except ValueError as error:
        raise UserError(f"{path} is not readable YAML: {error}. {_MEND}.") from error
