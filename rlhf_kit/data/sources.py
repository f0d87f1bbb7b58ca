"""Where rows come from: files, folders, the Hugging Face hub and the embedded world. Nothing is checked here."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from rlhf_kit.data import labels, rows
from rlhf_kit.data.columns import parts_of, rows_of
from rlhf_kit.data.faults import Context
from rlhf_kit.data.files import Source, listed, read_file, table_rows
from rlhf_kit.data.formats import KINDS
from rlhf_kit.data.hub import (
    HUB_FAULTS,
    at_revision,
    downloading,
    hub_fault,
    is_local,
    loading_error,
    names_path,
    split_revision,
)
from rlhf_kit.data.hub import pinned as pinned_repo
from rlhf_kit.data.rows import Holder
from rlhf_kit.data.store import rows_hash
from rlhf_kit.data.suffixes import SUFFIXES, suffix_of
from rlhf_kit.data.unpacking import measure_arrow
from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.hashes import file_hash
from rlhf_kit.inputs import missing, read_json
from rlhf_kit.references import imported
from rlhf_kit.world.kinds import rows as world_rows

WORLD = "world"
WORLD_SPLITS = ("train", "test")
PACKED = 8  # times what a packed file has, about, its rows have
# Kinds of the world with another kind's columns.
_CONTRACTS = {"cloze": "text", "cloze_zh": "text", "dialogues": "demonstrations"}
_SPLITS = {"train", "test", "validation", "valid", "dev", "val"}


@dataclass
class Unread:
    """A source that is there.

    Attributes:
        read: its rows, held by `list` or, of a large one, in a file (`rows.Spooled`).
        content: of a large one what tells its content from another's.
    """

    name: str
    read: Callable[[Holder], Source]
    content: Callable[[], str] | None = None


def read(source: str, kinds: Sequence[str], split: str, seed: int) -> Source:
    """Rows of a world kind, a file (which is taken whole, whatever `split`), a folder's split or a hub dataset's.

    A store of labels is taken whole too.
    """
    return find(source, kinds, split, seed).read(list)


def find(source: str, kinds: Sequence[str], split: str, seed: int) -> Unread:
    """As `read`, before any row is. Raises UserError for what is not there."""
    if source == WORLD or source.startswith(f"{WORLD}:"):
        return Unread(source, lambda _: _read_world(source, kinds, split, seed))
    if labels.is_store(source):
        reader = imported("rlhf_kit.data.labels.reader:read_labels", "feedback")
        return Unread(source, lambda _: Source(source, reader(source, kinds)))
    path = Path(source).expanduser()
    if os.path.isdir(path):  # not Path's, which raises for a name that is too long
        return _find_folder(path, kinds, split)
    if os.path.lexists(path):
        return _files(str(path), [path], lambda held: read_file(path, kinds, held))
    if names_path(source):
        raise missing(path)
    if _is_misspelt_world(source):
        known = ", ".join((WORLD, *(f"{WORLD}:{kind}" for kind in (*KINDS, *_CONTRACTS))))
        near = did_you_mean(source.lower(), known.split(", "))
        raise UserError(f"{source!r} is not a local file or folder. The embedded world is one of {known}.{near}")
    return _find_hub(source, kinds, split)


def _files(name: str, paths: Sequence[Path], read: Callable[[Holder], Source]) -> Unread:
    if sum(map(_size, paths)) <= rows.IN_MEMORY:
        return Unread(name, read)
    return Unread(name, read, lambda: "".join(suffix_of(path) + file_hash(path) for path in paths))


def _size(path: Path) -> int:
    """Bytes of a file's rows, about; 0 where it cannot be asked, which is told when it is read."""
    try:
        size = path.stat().st_size if path.is_file() else 0
    except (OSError, ValueError):
        return 0
    return size * PACKED if path.suffix.lower() in (".gz", ".parquet") else size


def pinned(source: str) -> str:
    """A source of the hub with its current commit, `owner/name@commit:config`; any other as it is.

    Raises UserError where the hub does not have it, or cannot be asked.
    """
    is_world = source == WORLD or source.startswith(f"{WORLD}:") or _is_misspelt_world(source)
    if is_world or labels.is_store(source) or is_local(Path(source).expanduser()):
        return source
    repo, config = _of_hub(source)
    try:
        repo = pinned_repo(repo, "dataset")
    except HUB_FAULTS as error:
        raise _not_had(source, repo, error) from None
    return f"{repo}:{config}" if config else repo


def _of_hub(source: str) -> tuple[str, str]:
    """("owner/name@revision", config) of a hub's source: either may stand last, `name@v1:en` or `name:en@v1`."""
    name, colon, config = source.partition(":")
    config, at, revision = config.partition("@")
    if colon and not config or at and ("@" in name or not revision) or {":", "@"} & {*config, *revision}:
        raise UserError(f"{source!r}: a source of the hub is written owner/name, owner/name@revision or ...:config.")
    return at_revision(name, revision), config


def _is_misspelt_world(source: str) -> bool:
    """Of names that are nothing here; those of the hub without an owner are few, and none is near."""
    name = source.lower().partition(":")[0]
    near = difflib.SequenceMatcher(None, name, WORLD).ratio() >= 0.8
    return "/" not in name and (near or name.startswith(WORLD) or name in (*KINDS, *_CONTRACTS))


def _read_world(source: str, kinds: Sequence[str], split: str, seed: int) -> Source:
    kind = source.partition(":")[2] or kinds[0]
    known = [*kinds, *(name for name, contract in _CONTRACTS.items() if contract in kinds)]
    if kind not in known:
        raise UserError(
            f"{source}: {kind!r} is not a kind of data for this stage, which takes {listed(known)}."
            f"{did_you_mean(kind, known)}"
        )
    if split not in WORLD_SPLITS:
        raise UserError(
            f"{source} has no split {split!r}; it has 'train' and 'test'.{did_you_mean(split, WORLD_SPLITS)}"
        )
    return Source(f"{WORLD}:{kind} ({split})", world_rows(kind, split, seed=seed))


def _find_folder(folder: Path, kinds: Sequence[str], split: str) -> Unread:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return _of_dataset(str(folder), _saved(folder, split), kinds, None)
    files: dict[str, list[Path]] = {}
    for path in sorted(entry for entry in [*folder.glob("*"), *folder.glob("data/*")] if entry.is_file()):
        if suffix_of(path) in SUFFIXES:
            # The hub's shards: train-00000-of-00002.parquet
            name = re.sub(r"-\d+-of-\d+$", "", path.name[: -len(suffix_of(path))])
            files.setdefault(name, []).append(path)
    texts = [path for paths in files.values() for path in paths if suffix_of(path).startswith(".txt")]
    if split in files:
        paths = files[split]
    elif texts and "text" in kinds and not files.keys() & _SPLITS:
        paths = texts
    else:
        raise _no_split(folder, split, files)
    shards = all(re.search(r"-\d+-of-\d+", path.name) for path in paths)
    if len(paths) > 1 and paths is not texts and not (shards and len({suffix_of(path) for path in paths}) == 1):
        names = ", ".join(path.name for path in paths)
        raise UserError(f"{folder} has more than one file for the split {split!r}: {names}. Name one of them.")
    if len(paths) == 1:
        return _files(str(paths[0]), paths, lambda held: read_file(paths[0], kinds, held))
    return _files(str(folder), paths, lambda held: _joined(str(folder), paths, kinds, held))


def _joined(name: str, paths: Sequence[Path], kinds: Sequence[str], held: Holder) -> Source:
    """Several files as one source; a fault of reading names its file, rows are numbered through."""
    faults = []

    def all_rows() -> Iterator[Any]:
        for path in paths:
            part = read_file(path, kinds, held)
            faults.extend((0, f"{part.name}, {part.context.unit} {at}: {text}") for at, text in part.context.faults)
            yield from part.rows

    return Source(name, held(all_rows()), Context("row", None, faults))


def _no_split(folder: Path, split: str, found: dict[str, list[Path]]) -> UserError:
    splits = sorted(found.keys() & _SPLITS)
    if splits:
        return UserError(f"{folder} has no split {split!r}; it has {listed(splits)}.{did_you_mean(split, splits)}")
    entries = sorted(entry.name for entry in folder.iterdir())
    inside = (", ".join(entries[:8]) + (", ..." if len(entries) > 8 else "")) or "nothing"
    return UserError(
        f"{folder} has no file for the split {split!r}, such as {split}.jsonl; it holds: {inside}. "
        "Name the file itself, or rename it."
    )


def _saved(folder: Path, split: str) -> datasets.Dataset:
    for path in sorted(folder.rglob("*.json")):
        read_json(path)
    try:
        for path in sorted(folder.rglob("*.arrow")):
            measure_arrow(path)
        saved = datasets.load_from_disk(str(folder))
    except UserError:
        raise
    except Exception as error:  # `datasets` raises a dozen unrelated types: no such feature, a file that is not there
        message = f"{folder} is not a complete folder saved by `datasets`: {_first_line(error)}"
        raise UserError(f"{message} Save it again, or give another source.") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise UserError(
                f"{folder} has no split {split!r}; it has {listed(list(saved))}.{did_you_mean(split, list(saved))}"
            )
        saved = saved[split]
    return saved


def _find_hub(source: str, kinds: Sequence[str], split: str) -> Unread:
    repo, config = _of_hub(pinned(source))
    name, commit = split_revision(repo)
    try:
        loaded = _cached(config, split, commit)
        if loaded is None:
            with downloading(f"the data {(f'{name}:{config}' if config else name)!r}"):
                loaded = datasets.load_dataset(name, config or None, split=split, revision=commit)
        if any(commit not in Path(file["filename"]).parts for file in loaded.cache_files):
            # Without the hub `datasets` takes what it has of this name, of whatever revision.
            raise ConnectionError(f"the cache holds a revision other than {commit}")
    except Exception as error:  # `datasets` raises a dozen unrelated types: no such config, no such split, a bad file
        raise _not_had(source, repo, error, f" (split {split!r})") from None
    return _of_dataset(f"{source} ({split})", loaded, kinds, f"{repo}:{config}:{split}")


def _cached(config: str, split: str, commit: str) -> datasets.Dataset | None:
    """What `datasets` has made of a split of this commit before, which does not change: the hub need not be asked."""
    made = Path(datasets.config.HF_DATASETS_CACHE).glob(f"*/{glob.escape(config) or '*'}/*/{commit}")
    folders = [folder for folder in made if (folder / "dataset_info.json").is_file()]
    if len(folders) != 1:
        return None
    whole = rf".+-{re.escape(split)}(-\d{{5}}-of-(\d{{5}}))?\.arrow"
    files = {path: match for path in sorted(folders[0].iterdir()) if (match := re.fullmatch(whole, path.name))}
    if not files or len(files) != max(int(match[2] or 1) for match in files.values()):
        return None
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in files])


def _not_had(source: str, repo: str, error: Exception, split: str = "") -> UserError:
    near = did_you_mean(source, [WORLD, *(f"{WORLD}:{kind}" for kind in KINDS)])
    why = hub_fault(repo, error, "dataset")
    return loading_error(repo, error)(
        f"{source!r} is not a local file or folder, and it could not be loaded from the Hugging Face hub{split}: "
        f"{why or _first_line(error)} Check the id and the connection, or give a local file.{near}"
    )


def _of_dataset(name: str, dataset: datasets.Dataset, kinds: Sequence[str], content: str | None) -> Unread:
    """`content`: where it is known without reading the rows."""

    def read(held: Holder) -> Source:
        parts = table_rows(name, parts_of(dataset, lambda part: rows_of(part, kinds)))
        return Source(name, held(row for part in parts for row in part))

    return Unread(name, read, (lambda: content or rows_hash(dataset)) if rows.is_large(dataset) else None)


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip()
    return line if line.endswith(".") else f"{line}."
