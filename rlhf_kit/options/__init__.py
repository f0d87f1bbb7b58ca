"""Options: how they are declared, bounds of numbers, and text as the type that a field declares."""

from collections.abc import Collection
from copy import copy
from dataclasses import field
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    required: bool = False,
    choices: Collection[str] = (),
    const: Any = None,  # what the bare name stands for
    positional: str = "",  # its name among the usage's words
    short: str = "",  # another spelling of the name
    group: str = "",  # exactly one option of a group is given
    whole: bool = False,  # each word is an item of the list: names of files, which may hold a comma or a space
    repeats: bool = False,  # each use of the name gives one such item
) -> Any:
    """A field of a dataclass of options; a list or dict is copied for each record."""
    metadata = {name: value for name, value in locals().items() if name != "default"}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)
