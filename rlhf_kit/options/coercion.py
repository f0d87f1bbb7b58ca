"""Text as the type a dataclass field declares."""

from __future__ import annotations

import enum
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal

from rlhf_kit.errors import UserError
from rlhf_kit.inputs import Loader, parse_yaml, read_json

SHOWN = 200  # characters of a value in a message
_TRUE, _FALSE, _NONE = {"true", "yes", "on"}, {"false", "no", "off"}, {"none", "null", "~", ""}


def coerce(value: Any, hint: Any) -> Any:
    """`value` (text, bool, None, list or dict) as the declared type; ValueError says what was given and is needed."""
    options = members(hint)
    if type(None) in options and (value is None or (isinstance(value, str) and value.strip().lower() in _NONE)):
        return None
    if any(_is_enum(option) for option in options):
        options = tuple(option for option in options if option is not str)  # `Strategy | str` means a Strategy's name
    for option in sorted((option for option in options if option is not type(None)), key=_precision):
        try:
            return _coerce_one(value, option)
        except (ValueError, TypeError):
            continue
    shown = json.dumps(value, ensure_ascii=False, default=str)
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
    raise ValueError(f"got {shown}, needs {describe(hint)}.")


def read_mapping(path: str) -> dict[str, Any]:
    """What a JSON file says; ValueError for one that is not there, or holds anything but a mapping."""
    needed = 'needs a mapping such as {"key": 1}, or a JSON file of one'
    if path.lstrip().startswith("{"):
        raise ValueError(f"{path!r} is not JSON; {needed}.")
    try:
        content = read_json(Path(path).expanduser())
    except UserError as error:
        raise ValueError(f"got {path!r}, {needed}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path!r} holds a {type(content).__name__}; {needed}.")
    return content


def takes_mapping(hint: Any) -> bool:
    return any(option is dict or typing.get_origin(option) is dict for option in members(hint))


def is_true(value: Any) -> bool:
    """Whether a switch is set by this value."""
    return str(value).strip().lower() in _TRUE


def _coerce_one(value: Any, member: Any) -> Any:
    if member is Any:
        return _plain(value)
    origin, args = typing.get_origin(member), typing.get_args(member)
    if origin is list or member is list:
        items = value if isinstance(value, list) else _split(value)
        return [coerce(item, args[0] if args else Any) for item in items]
    if origin is dict or member is dict:
        loaded = value if isinstance(value, dict) else parse_yaml(value)
        if not isinstance(loaded, dict):
            raise ValueError(value)
        return {key: _plain(item) for key, item in loaded.items()}
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else _split(value)
        return tuple(coerce(item, kind) for item, kind in zip(items, args, strict=True))
    if origin is Literal:
        matching = [option for option in args if str(option) == str(value)]
        if not matching:
            raise ValueError(value)
        return matching[0]
    return _scalar_as(value, member)


def _scalar_as(value: Any, member: type) -> Any:
    if isinstance(value, (list, dict)):
        raise ValueError(value)
    if _is_enum(member):
        return member(value)
    if member is bool:
        text = str(value).strip().lower()
        if text not in _TRUE | _FALSE:
            raise ValueError(value)
        return text in _TRUE
    if issubclass(member, Path) and isinstance(value, str | Path):
        return Path(value)
    if member is str:
        return str(value) if not isinstance(value, bool) else str(value).lower()
    if isinstance(value, bool):  # True is no number
        raise ValueError(value)
    if member is float:
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(value)
        return number
    if member is int:
        number = float(value)
        if not number.is_integer():
            raise ValueError(value)
        return int(value) if str(value).lstrip("+-").isdigit() else int(number)
    raise TypeError(member)


def _plain(value: Any) -> Any:
    """Text inside a free-form dict, typed as YAML or JSON would."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, str):
        return value
    try:
        return float(value) if "e" in value.lower() and _is_number(value) else parse_yaml(value)
    except ValueError:
        return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _split(text: Any) -> list[Any]:
    """`a,b`, `a b`, or a JSON/YAML list in brackets; a number is a list of one."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        return [text]
    if not isinstance(text, str):
        raise ValueError(text)
    if text.strip().startswith("["):
        return parse_yaml(text, TextLoader)
    return [item for item in text.replace(",", " ").split() if item]


def members(hint: Any) -> tuple:
    """The alternatives of a Union; (hint,) for anything else."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(m for arg in typing.get_args(hint) for m in members(arg))
    return (hint,)


def _is_enum(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, enum.Enum)


def _precision(member: Any) -> int:
    """Exact types first, text and lists of it last: "5" is an int for `int | str`."""
    if member is list or typing.get_origin(member) is list:
        return 5
    return {bool: 1, int: 2, float: 3, Path: 4, str: 4}.get(member, 0)


def takes_list(hint: Any) -> bool:
    return any(member is list or typing.get_origin(member) is list for member in members(hint))


def describe(hint: Any) -> str:
    """A type in words a user reads."""
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "none"}
    words[Path] = "a path"
    parts = []
    options = members(hint)
    for member in options:
        origin, args = typing.get_origin(member), typing.get_args(member)
        if member is str and any(_is_enum(option) for option in options):
            continue
        if member in words:
            parts.append(words[member])
        elif origin is Literal or _is_enum(member):
            parts.append("one of " + ", ".join(str(a) for a in (args or [item.value for item in member])))
        elif origin is list or member is list:
            plural = {int: " of whole numbers", float: " of numbers"}
            parts.append(f"a list{plural.get(args[0], '') if args else ''}")
        elif origin is tuple:
            parts.append(f"{len(args)} values")
        elif origin is dict or member is dict:
            parts.append('a mapping such as {"key": 1}')
        else:
            parts.append(str(getattr(member, "__name__", member)))
    return " or ".join(dict.fromkeys(parts))


class TextLoader(Loader):
    """Leaves scalars as they are written."""


for _kind in ("int", "float", "bool", "timestamp", "str"):
    TextLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", lambda loader, node: node.value)
