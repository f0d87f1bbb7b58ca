"""Names of the Hugging Face hub: what may be one, its commit, its files, and why it could not be read.

`owner/name` is what the default branch holds; `owner/name@revision` a branch, a tag or a commit. A name is *pinned*
where its revision is a commit: what a branch holds may change while a run goes on, and between two runs.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import tqdm

from rlhf_kit.data.suffixes import is_file_name
from rlhf_kit.errors import HubUnreachableError, UserError
from rlhf_kit.inputs import read_json
from rlhf_kit.launched import is_main_process

logger = logging.getLogger(__name__)

OUTPUTS = "runs"  # where the recipes write
COMMIT = re.compile(r"[0-9a-f]{40}")
# What the hub's clients raise where a name could not be had, beside the exceptions of Python for files and sockets.
HUB_FAULTS = (HTTPError, RevisionResolutionError, HFValidationError, OSError)
NO_ANSWER = (408, 429)  # and from 500 on: the hub is busy or down, and has not said whether there is such a thing
# All of a model but its weights. In folders of their own stand other formats and older checkpoints; code and chat
# templates may.
CONFIG_TYPES = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.bpe", "*.codes", "*.spm", "*.vocab")
CONFIGS = (*CONFIG_TYPES, "*.py", "*.jinja")
MODEL_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in transformers' order; each may be in shards
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def names_path(name: str | os.PathLike) -> bool:
    """Whether this can be no hub id, `name` or `owner/name`: it begins, is nested or ends as a path does."""
    text, parts = str(name), Path(str(name).partition("@")[0]).parts
    return (
        text.startswith(("/", "~", "."))
        or "\\" in text
        or len(parts) > 2
        or parts[:1] == (OUTPUTS,)
        or is_file_name(Path(text))
    )


def is_local(name: str | os.PathLike) -> bool:
    """Whether a name is a path: of what is here, or of what is nowhere."""
    return Path(name).exists() or names_path(name)


# --- revisions --------------------------------------------------------------------------------------------------


def split_revision(name: str | os.PathLike) -> tuple[str, str | None]:
    """("owner/name", "v1.0") of "owner/name@v1.0"; a path, and an id without a revision, as they are with None."""
    repo, at, revision = str(name).partition("@")
    if not at or is_local(name):
        return str(name), None
    if not repo or not revision:
        raise UserError(f"{str(name)!r}: a revision of a model or dataset on the hub is written owner/name@revision.")
    return repo, revision


def at_revision(repo: str, revision: str | None) -> str:
    """`owner/name@revision`; without one as it is."""
    return f"{repo}@{revision}" if revision else repo


def pinned(name: str | os.PathLike, repo_type: str = "model") -> str:
    """`owner/name@commit` of a name of the hub: its current commit. A path as it is.

    Raises what the hub's client does (`HUB_FAULTS`). A hub that gives no answer is not asked where the cache knows.
    """
    repo, revision = split_revision(name)
    if is_local(name) or COMMIT.fullmatch(revision or ""):
        return str(name)
    try:
        commit = HfApi().resolve_revision(repo, repo_type=repo_type, revision=revision)
    except (HFValidationError, HfHubHTTPError):
        raise
    except (AssertionError, KeyError, TypeError, ValueError) as error:  # a proxy or a login page
        raise ConnectionError(
            f"the server does not respond as a Hugging Face hub does, {type(error).__name__}"
        ) from error
    return f"{repo}@{commit.resolved}"


def fetched(name: str | os.PathLike, weights: tuple[str, ...] = ()) -> Path:
    """The folder with a model's files, of the hub by way of its cache: all but the weights, or with those too.

    Args:
        weights: names that the weights may have; the first of these that is there is wanted.
    """
    if is_local(name):
        return Path(name)
    repo, commit = split_revision(pinned(name))
    inside = [f"*/{pattern}" for pattern in CONFIG_TYPES]
    folder = snapshot_download(
        repo, revision=commit, allow_patterns=[*CONFIGS], ignore_patterns=inside, tqdm_class=_Silent
    )
    folder = Path(folder)
    if not weights:
        return folder
    try:
        sizes = {file.path: file.size for file in get_cached_repo_tree(repo, revision=commit)}
    except CachedRepoTreeNotFoundError:  # the hub cannot be asked, and other programs have filled the cache
        sizes = {path.name: 0 for path in folder.iterdir()}
    wanted = _weight_files(folder, weights, [*sizes])
    missing = [file for file in wanted if not (folder / file).exists()]
    if missing:
        size = sum(sizes.get(file) or 0 for file in missing)
        with downloading(f"{_count(missing)} of {repo!r}", f": {_size(size)}"):
            snapshot_download(repo, revision=commit, allow_patterns=wanted, tqdm_class=_Bar)
    return folder


@contextmanager
def downloading(what: str, size: str = "") -> Iterator[None]:
    """Within, what may take long: one process says so, and that it is there, also where no bar is seen."""
    speaks, began = is_main_process() and not constants.HF_HUB_OFFLINE, time.monotonic()
    if speaks:
        logger.warning("Downloading %s from the hub%s.", what, size)
    yield
    if speaks:
        logger.warning("Downloaded %s in %.0f s.", what, time.monotonic() - began)


class _Silent(tqdm):
    """No bar: of small files."""

    def __init__(self, *args, **options):
        super().__init__(*args, **{**options, "disable": True})


class _Bar(tqdm):
    """Of the three bars of a download that of the bytes, on a terminal."""

    def __init__(self, *args, **options):
        is_wanted = options.get("unit") == "B" and not str(options.get("name")).endswith("transfer")
        options |= {"disable": None if is_wanted else True, "desc": "Downloading"}  # None: not in a pipe
        super().__init__(*args, **options)

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Said once, at the end; the bar is left open."""
        self.close()


def shards(index: Path) -> set[str]:
    """The files beside it that an index of weights names. Raises UserError for what is no index."""
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    names = {*places.values()} if isinstance(places, dict) and all(isinstance(x, str) for x in places.values()) else ()
    if not names or any(Path(name).name != name for name in names):
        raise UserError(
            f"{index} is not a valid index of weights: its `weight_map` must map each weight to a file in the same "
            "folder. Give the file as it was saved."
        )
    return names


def _weight_files(folder: Path, names: tuple[str, ...], there: list[str]) -> list[str]:
    for name in names:
        index = folder / f"{name}.index.json"
        if name in there:
            return [name]
        if index.is_file():
            return sorted(shards(index))
    return []


def check_shards(folder: Path, weights: tuple[str, ...]) -> None:
    """Raises UserError where the index of a model's weights names a file that is not beside it."""
    wanted = _weight_files(folder, weights, [name for name in weights if (folder / name).is_file()])
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{str(folder)!r} lacks {_count(missing)}, which its index of weights names ({missing[0]}). Give complete "
            "files: load or copy the model again."
        )


def _count(files: list[str]) -> str:
    return files[0] if len(files) == 1 else f"{len(files)} files of weights"


def _size(count: int) -> str:
    """Bytes as people say them."""
    unit, divisor = next(((u, d) for u, d in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if count >= d), ("bytes", 1))
    return f"{count / divisor:.3g} {unit}"


# --- what went wrong --------------------------------------------------------------------------------------------


def page(name: str | os.PathLike, repo_type: str = "model") -> str:
    """The address where a person finds it."""
    repo, _ = split_revision(name)
    return f"{constants.ENDPOINT}/{'' if repo_type == 'model' else f'{repo_type}s/'}{repo}"


def loading_error(name: str | os.PathLike, error: Exception) -> type[UserError]:
    """What to raise where a name that is nothing here could not be loaded: only a hub that cannot be asked leaves it
    open whether anything is wrong. A name inside a folder that is here is meant as a path."""
    parent = Path(name).parent
    is_here = Path(name).exists() or (parent != Path() and parent.is_dir())
    return UserError if is_here or names_path(name) or not _is_unreachable(error) else HubUnreachableError


def hub_fault(name: str | os.PathLike, error: Exception, repo_type: str = "model") -> str | None:
    """What kept a name of the hub from being had, and what to do; None where it is no matter of the hub."""
    (_, revision), where = split_revision(name), page(name, repo_type)
    kinds: dict[type[BaseException], str] = {
        GatedRepoError: (
            f"it is gated. Ask for access at {where}, with an account of the hub, and log in on this machine: "
            "`hf auth login`, or a token of the account in HF_TOKEN."
        ),
        RevisionNotFoundError: (
            f"it has no revision {revision!r}. Give a branch, tag or commit listed at {where}/tree/main."
        ),
        RepositoryNotFoundError: (
            f"the hub has no such {repo_type}, or it is private. Check the name at {where}; for a private one log in "
            "on this machine: `hf auth login`, or a token in HF_TOKEN."
        ),
        OfflineModeIsEnabled: (
            f"the hub cannot be used (HF_HUB_OFFLINE is set), and the files are not in the cache "
            f"({constants.HF_HUB_CACHE}). Load it once without HF_HUB_OFFLINE."
        ),
    }
    links = list(_chain(error))
    for kind, advice in kinds.items():
        if any(isinstance(link, kind) for link in links):
            return advice
    if any(isinstance(link, DatasetNotFoundError) and "gated" in str(link) for link in links):  # its cause is lost
        return kinds[GatedRepoError]
    status = next((link.response.status_code for link in links if isinstance(link, HfHubHTTPError)), None)
    if status in (401, 403):
        return (
            f"the hub refuses this account or its token ({status}). Log in again with `hf auth login`, or correct "
            f"HF_TOKEN; whether the account may read it is shown at {where}."
        )
    if status is not None and (status >= 500 or status in NO_ANSWER):
        return f"the hub ({constants.ENDPOINT}) is busy or down: it answered {status}. Try again later."
    broken = next((link for link in links if isinstance(link, HTTPError | ConnectionError | TimeoutError)), None)
    if broken is not None:
        cause = f"{type(broken).__name__}: {str(broken).splitlines()[0] if str(broken) else 'no answer'}"
        return (
            f"the connection to the hub ({constants.ENDPOINT}) failed or was cut ({cause.rstrip('.')}). Check it, and "
            "start again: what is in the cache is not downloaded again."
        )
    return None


def _is_unreachable(error: BaseException) -> bool:
    """Whether the hub gave no answer, offline mode included; that it has no such thing is an answer."""
    chain = list(_chain(error))
    if any(isinstance(link, DatasetNotFoundError | RepositoryNotFoundError | RevisionNotFoundError) for link in chain):
        return False
    return any(
        link.response.status_code >= 500 or link.response.status_code in NO_ANSWER
        if isinstance(link, HfHubHTTPError)
        else isinstance(link, ConnectionError | TimeoutError | LocalEntryNotFoundError | HTTPError)
        for link in chain
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
