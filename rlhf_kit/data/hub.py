"""Names that may be the Hugging Face hub's, and whether the hub could be asked about one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from rlhf_kit.data.files import is_file_name
from rlhf_kit.errors import HubUnreachableError, UserError

OUTPUTS = "runs"  # where the recipes write


def names_path(name: str | os.PathLike) -> bool:
    """Whether this can be no hub id, `name` or `owner/name`: it begins, is nested or ends as a path does."""
    text, parts = str(name), Path(name).parts
    return (
        text.startswith(("/", "~", "."))
        or "\\" in text
        or len(parts) > 2
        or parts[:1] == (OUTPUTS,)
        or is_file_name(Path(name))
    )


def loading_error(name: str | os.PathLike, error: Exception) -> type[UserError]:
    """What to raise where a name that is nothing here could not be loaded: only a hub that cannot be asked leaves it
    open whether anything is wrong. A name inside a folder that is here is meant as a path."""
    parent = Path(name).parent
    is_here = Path(name).exists() or (parent != Path() and parent.is_dir())
    return UserError if is_here or names_path(name) or not _is_unreachable(error) else HubUnreachableError


def _is_unreachable(error: BaseException) -> bool:
    """Whether the hub gave no answer, offline mode included; that it has no such thing is an answer."""
    chain = list(_chain(error))
    if any(isinstance(link, DatasetNotFoundError | RepositoryNotFoundError) for link in chain):
        return False
    return any(isinstance(link, ConnectionError | TimeoutError | LocalEntryNotFoundError) for link in chain)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
