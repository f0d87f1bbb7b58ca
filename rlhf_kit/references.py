"""What `package.module:NAME` names: in the kit, or in the user's own code, installed or in the current folder."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from rlhf_kit.errors import UserError, did_you_mean


def imported(reference: str, extra: str = "") -> Any:
    """What a reference of the kit's own names. `extra`: what must be installed for it.

    Raises UserError where the extra is not.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if not extra or (error.name or "").startswith("rlhf_kit"):
            raise
        raise UserError(
            f'This needs the package {error.name}, which is not installed: pip install "rlhf_kit[{extra}]". 缺少套件。'
        ) from error


def search_here() -> None:
    """Let the current folder be searched for modules, after all others: no file there stands for a library."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def load_reference(reference: str, what: str) -> Any:
    """What `module:NAME` of the user's names; `what` begins the message.

    Raises UserError: no such module or name, or the import fails.
    """
    module_name, _, name = reference.partition(":")
    if not module_name.startswith("rlhf_kit."):
        search_here()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        raise UserError(
            f"{what} {reference!r}: importing {module_name!r} failed with {type(error).__name__}: {error}. "
            "The module must be installed or be in the current folder."
        ) from error
    if not hasattr(module, name):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(
            f"{what} {reference!r}: {name!r} does not exist in {module_name!r}.{did_you_mean(name, names)}"
        )
    return getattr(module, name)
