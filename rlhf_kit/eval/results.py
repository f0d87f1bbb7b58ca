"""The output of an evaluation: numbers with everything needed to reproduce them, and one line per item."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_kit.errors import UserError
from rlhf_kit.hashes import text_hash
from rlhf_kit.pages.shell import write_page
from rlhf_kit.storage import Folder, write_fault


def fingerprint(values: Any) -> str:
    """Of any JSON values: the same text gives the same 16 hexadecimal digits."""
    return text_hash(json.dumps(values, ensure_ascii=False, sort_keys=True))


def of(folder: Path, task: str) -> Folder:
    """The folder as one that `rlhf-kit eval TASK` writes into."""
    return Folder(folder, f"eval {task}")


def write(path: Path, text: str, task: str) -> None:
    """Write a file whole or not at all; a page that led back to its suite still does.

    Raises UserError where it may not be written, or is no result of this task; OSError where there is no room.
    """
    try:
        files = of(path.parent, task)
        write_page(files, path.name, text) if path.suffix == ".html" else files.write(path.name, text)
    except OSError as error:
        if write_fault(error):
            raise
        raise UserError(f"{str(path)!r} cannot be written: {error.strerror}.") from error
