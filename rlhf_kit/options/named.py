"""Models by name: `NAME=M`, or `M` alone, called as its folder is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from rlhf_kit.errors import UserError

NAME = re.compile(r"\w[\w.-]*")  # also of a folder


def named_model(text: str) -> tuple[str, str]:
    """(name, folder or hub id) of `NAME=M` or `M`. Raises UserError.

    >>> named_model("base=runs/demo/0"), named_model("runs/demo/sft/")
    (('base', 'runs/demo/0'), ('sft', 'runs/demo/sft/'))
    """
    name, equals, path = text.partition("=")
    if not equals or "/" in name:  # "=" may stand in a path
        name, path = re.sub(r"[^\w.-]+", "-", Path(text).name), text
    if not NAME.fullmatch(name) or not path:
        raise UserError(f"--models: {text!r} must be NAME=M, as in sft=runs/demo/sft; a NAME is one of a folder.")
    return name, path


def refuse_twice(names: Iterable[str]) -> None:
    """Raises UserError where two are called the same: some disks fold case."""
    names = [name.lower() for name in names]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--models: two are called {twice!r}; give them names, as in {twice}=M {twice}-2=M.")
