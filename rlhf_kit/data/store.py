"""Large data in Arrow files, made once and read from there by every run: a cache by content.

A name is the hash of all that its rows follow from (`key_of`), the code that makes them included. A folder gets that
name when it is whole; what a kill leaves has another, is never read, and goes when the rows are made again. Of several
processes that want the same rows one makes them, and the others wait.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow
import xxhash

from rlhf_kit.data.rows import AT_ONCE, folder, writing
from rlhf_kit.hashes import file_hash, text_hash
from rlhf_kit.launched import is_main_process
from rlhf_kit.memory import give_back
from rlhf_kit.references import imported

if TYPE_CHECKING:
    import transformers

try:
    import fcntl
except ImportError:  # not Unix
    fcntl = None

ROWS, ABOUT = "rows.arrow", "about.json"
logger = logging.getLogger(__name__)


def stored(key: str, name: str, make: Callable[[Path], dict]) -> tuple[datasets.Dataset, dict]:
    """(rows, memory-mapped; what there is to say about them) under a key.

    Args:
        name: of the rows, in messages.
        make: writes them to a path (`write`), where they are not there, and says what there is to say, for JSON.

    Raises:
        UserError: what `make` does, and where there is no room.
    """
    home = folder() / key
    if not _is_whole(home):
        with _alone(home):
            if not _is_whole(home):
                _make(home, name, make)
    pyarrow.default_memory_pool().release_unused()  # what Arrow and glibc would keep of what made the rows and the key
    give_back()
    about = json.loads((home / ABOUT).read_text(encoding="utf-8"))
    return datasets.Dataset.from_file(str(home / ROWS)), about["about"]


def place_of(dataset: datasets.Dataset) -> str:
    """The folder of a stored data set, and the bytes in it."""
    home = Path(dataset.cache_files[0]["filename"]).parent
    return f"{home} ({sum(path.stat().st_size for path in home.iterdir()) / 1e6:,.0f} MB)"


def _is_whole(home: Path) -> bool:
    try:
        return json.loads((home / ABOUT).read_text(encoding="utf-8"))["bytes"] == (home / ROWS).stat().st_size
    except (OSError, ValueError):
        return False


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Within, no other process makes these rows. The system lets go of what a killed one held."""
    with writing(home.parent):
        home.parent.mkdir(parents=True, exist_ok=True)
        lock = home.with_suffix(".lock").open("w")
    with lock:
        if fcntl is not None:
            with suppress(OSError):  # a disk of the network without locks: both make them, and one is in time
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(home: Path, name: str, make: Callable[[Path], dict]) -> None:
    for unfinished in home.parent.glob(f".{home.name}.*"):  # of one that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
    unfinished = home.with_name(f".{home.name}.{os.getpid()}")
    if is_main_process():
        logger.warning("%s: read once into %s, for every run.", name, home)
    try:
        with writing(home.parent):
            unfinished.mkdir()
            about = make(unfinished / ROWS)
            size = (unfinished / ROWS).stat().st_size
            (unfinished / ABOUT).write_text(json.dumps({"about": about, "bytes": size}, indent=1), encoding="utf-8")
            if home.is_dir():  # damaged
                shutil.rmtree(home)
            with suppress(FileExistsError):
                unfinished.rename(home)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write(path: Path, rows: Iterable[Mapping[str, Any]], features: datasets.Features) -> None:
    """Rows as a file of Arrow's stream, some at a time. Raises what Arrow does for values of other types."""
    rows = iter(rows)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, features.arrow_schema) as stream:
        while part := list(islice(rows, AT_ONCE)):
            stream.write_table(datasets.Dataset.from_list(part, features=features).data.table)


# --- what tells content from content --------------------------------------------------------------------------------


def key_of(*parts: Any) -> str:
    """The name of what follows from these texts and numbers, by the code as it is."""
    return text_hash(json.dumps([parts, _code(), _versions()], ensure_ascii=False))


@cache
def _code() -> str:
    """The hash of what reads rows and makes tokens of them."""
    data = Path(__file__).parent
    files = [*sorted(data.rglob("*.py")), *(data.parent / name for name in ("inputs.py", "sft.py"))]
    further = "reward/data.py", "models/heads.py", "ppo/prompts.py", "stages/pretrain.py", "stages/mlm.py"
    files += [data.parent / name for name in further]
    return text_hash("".join(file_hash(path) for path in files))


def _versions() -> list[str]:
    return [imported(f"{module}:__version__") for module in ("datasets", "pyarrow", "transformers", "tokenizers")]


def token_key(what: str, rows: datasets.Dataset, tokenizer: transformers.PreTrainedTokenizerBase, *more: Any) -> str:
    """The name of the tokens of `rows`."""
    return key_of(what, rows_hash(rows), tokenizer_hash(tokenizer), *more)


def tokenizer_hash(tokenizer: transformers.PreTrainedTokenizerBase) -> str:
    """Of all that is saved of it, its chat template included."""
    with tempfile.TemporaryDirectory() as saved:
        tokenizer.save_pretrained(saved)
        files = sorted(path for path in Path(saved).rglob("*") if path.is_file())
        return text_hash("".join(path.name + file_hash(path) for path in files))


class _Digest:
    """A file to write into that keeps nothing but the hash."""

    closed = False

    def __init__(self):
        self.hash = xxhash.xxh3_128()

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)

    def flush(self) -> None: ...


def rows_hash(rows: datasets.Dataset, at_once: int = 10_000) -> str:
    """A hash of columns and content; however the rows came to lie in memory."""
    digest = _Digest()
    digest.hash.update(str(rows.features).encode())
    for start in range(0, len(rows), at_once):
        table = rows.with_format("arrow")[start : start + at_once].combine_chunks()
        with pyarrow.ipc.new_stream(pyarrow.PythonFile(digest, mode="w"), table.schema) as stream:
            stream.write_table(table)
    return digest.hash.hexdigest()
