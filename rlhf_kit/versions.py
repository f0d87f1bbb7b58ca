"""Which code produced a number: the versions of Python, the kit and its libraries, and the kit's own commit."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import rlhf_kit

TRAINING = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
MEASURING = ("torch", "transformers", "tokenizers", "accelerate", "peft", "datasets", "numpy")


def versions(libraries: Iterable[str] = MEASURING) -> dict[str, str]:
    """Of Python, the kit and these installed packages."""
    known = {"python": platform.python_version(), "rlhf_kit": rlhf_kit.__version__}
    return known | {name: importlib.metadata.version(name) for name in libraries}


def provenance() -> dict[str, Any]:
    """What the record of a result says of the code that made it: its `versions` and `commit`."""
    return {"versions": versions(), "commit": commit()}


def made_by(record: Mapping[str, Any]) -> list[str]:
    """The same of a record, in words: the foot of its page."""
    return [f"commit {record['commit']}", *(f"{name} {version}" for name, version in record["versions"].items())]


def commit() -> str | None:
    """The kit's git commit, with "-dirty" where files differ from it; None where it runs from no checkout."""
    folder = Path(rlhf_kit.__file__).parent

    def git(*arguments: str) -> str:
        outcome = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return outcome.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else another project's checkout holds an installed kit
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None
