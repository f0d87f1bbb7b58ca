"""Whether a checkpoint is whole: its last file names every other one with its size and hash.

`checkpoint.json` is written first without `files`, and again when all else is on disk: a checkpoint whose writing was
cut off says so, and one of which a byte was changed or lost later is found, whatever the file.
"""

from __future__ import annotations

import json
import re
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError, safe_open

from rlhf_kit.inputs import read_json
from rlhf_kit.storage import RUN, Folder, replace

RECORD, STATE = "checkpoint.json", "trainer_state.json"
WEIGHTS = re.compile(r"(model|pytorch_model|adapter_model)([-.].*)?\.(safetensors|bin|index\.json)|.*\.index\.json")
BLOCK = 1 << 22


def checkpoints(folder: Path) -> list[Path]:
    """`checkpoint-N` folders, the one that was written last at the end: a run may have gone back to an earlier one."""
    folders = folder.glob("checkpoint-*") if folder.is_dir() else []
    numbered = [path for path in folders if path.is_dir() and path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(numbered, key=lambda path: (record(path).get("saved", path.stat().st_mtime), steps_of(path)))


def last_whole(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The last checkpoint that is whole, and what is wrong with each one written after it, the last first."""
    wrong = {}
    for checkpoint in reversed(checkpoints(folder)):
        fault = damage(checkpoint)
        if fault is None:
            return checkpoint, wrong
        wrong[checkpoint] = fault
    return None, wrong


def steps_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def record(checkpoint: Path) -> dict[str, Any]:
    """What `checkpoint.json` holds; empty where there is none that reads."""
    try:
        entries = read_json(checkpoint / RECORD)
    except ValueError:
        return {}
    return entries if isinstance(entries, dict) else {}


def begin(checkpoint: Path, provenance: dict[str, Any] | None) -> None:
    """Before anything is written into it: a checkpoint that is not whole. `provenance`: what the run trains with.

    What an earlier writing left in it goes: it would count as part of this one (peft adds to a card that is there, and
    fewer shards would leave the others). What no run wrote stays.
    """
    if earlier := record(checkpoint):
        for name in earlier.get("files") or _files(checkpoint):
            (checkpoint / name).unlink(missing_ok=True)
    _write(checkpoint, {"saved": time.time(), "files": None, "provenance": provenance})


def seal(checkpoint: Path) -> None:
    """When everything is written: it is whole."""
    files = {name: [path.stat().st_size, fingerprint(path)] for name, path in _files(checkpoint).items()}
    _write(checkpoint, record(checkpoint) | {"files": files})


def _write(checkpoint: Path, found: dict[str, Any]) -> None:
    replace(checkpoint / RECORD, json.dumps(found, indent=1))


def _files(checkpoint: Path) -> dict[str, Path]:
    paths = {path.relative_to(checkpoint).as_posix(): path for path in sorted(checkpoint.rglob("*")) if path.is_file()}
    return {name: path for name, path in paths.items() if name != RECORD}


def rotate(folder: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints until `limit` are left, never the best or the last one, and what a kill left half
    written. (transformers orders them by folder times or numbers, and such a half could count as the last.)"""
    if not limit or limit < 0:
        return
    whole, halves = [], []
    for checkpoint in checkpoints(folder):
        if not is_cut_off(checkpoint):
            whole.append(checkpoint)
        elif record(checkpoint):
            halves.append(checkpoint)
    kept = {path.name for path in whole[-1:]} | ({Path(best).name} if best else set())
    spare = [checkpoint for checkpoint in whole if checkpoint.name not in kept]
    for checkpoint in [*halves, *spare[: max(0, len(whole) - limit)]]:
        _write(checkpoint, record(checkpoint) | {"files": None})  # whatever a kill leaves of it is none
        shutil.rmtree(checkpoint, ignore_errors=True)


def fingerprint(path: Path) -> str:
    """A hash of a file's content, 128 bits: for damage, not for malice."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def is_cut_off(checkpoint: Path) -> bool:
    """Whether its writing never ended: it was no checkpoint yet. (One that was whole once is damaged.)"""
    entries = record(checkpoint)
    if entries:
        return not isinstance(entries.get("files"), dict)
    return not any((checkpoint / name).exists() for name in (RECORD, STATE)) and not _had_record(checkpoint)


def _had_record(checkpoint: Path) -> bool:
    """Whether a version that writes a record made it, by its own files or by what the run's folder remembers."""
    known = Folder(checkpoint.parent, RUN).entries()
    return any(checkpoint.glob("counted*.pt")) or f"{checkpoint.name}/{RECORD}" in known


def damage(checkpoint: Path) -> str | None:
    """What keeps a run from going on from here, by the file; None: the checkpoint is whole."""
    if is_cut_off(checkpoint):
        return "it was not completely written"
    if (checkpoint / RECORD).exists():
        files = record(checkpoint).get("files")
        fault = _unlike(checkpoint, files) if files is not None else f"{RECORD} cannot be read"
    elif _had_record(checkpoint):
        fault = f"{RECORD} is missing"
    else:
        fault = _unreadable(checkpoint)  # made before checkpoints had a record
    return fault or _missing(checkpoint)


def _unlike(checkpoint: Path, files: dict[str, list]) -> str | None:
    for name, (size, digest) in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes of {size}"
        if fingerprint(path) != digest:
            return f"the content of {name} has changed"
    return None


def _unreadable(checkpoint: Path) -> str | None:
    for name, path in _files(checkpoint).items():
        if name.endswith(".safetensors") and not _is_safetensors(path):
            return f"{name} is cut off or is not a safetensors file"
        if name.endswith((".pt", ".pth", ".bin")) and not _is_archive(path):
            return f"{name} is cut off or damaged"
        if name.endswith(".json") and not _reads(path):
            return f"{name} cannot be read"
        if name.endswith(".index.json"):
            shards = set(read_json(path).get("weight_map", {}).values())
            lost = sorted(shard for shard in shards if not (path.parent / shard).is_file())
            if lost:
                return f"{lost[0]} is missing"
    return None


def _missing(checkpoint: Path) -> str | None:
    """Files that a run cannot go on without (FSDP and DeepSpeed keep weights and optimizer in folders of theirs)."""
    names = [item.name for item in checkpoint.iterdir()]
    if STATE not in names:
        return f"{STATE} is missing"
    if any(name.startswith(("global_step", "pytorch_model_fsdp", "optimizer_")) for name in names):
        return None
    if not any(WEIGHTS.fullmatch(name) for name in names):
        return "it has no weights"
    wanted = {"optimizer.pt": "optimizer.pt", "scheduler.pt": "scheduler.pt", "rng_state": "rng_state.pth"}
    lost = [name for start, name in wanted.items() if not any(item.startswith(start) for item in names)]
    if len(lost) == len(wanted):
        return "it holds the model only (--save_only_model)"
    return f"{lost[0]} is missing" if lost else None


def _is_safetensors(path: Path) -> bool:
    """Whether the header reads and the tensors it names fill the file."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


def _is_archive(path: Path) -> bool:
    """Whether what torch.save wrote is whole: a zip archive with a checksum a record."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError):
        return False


def _reads(path: Path) -> bool:
    try:
        read_json(path)
    except ValueError:
        return False
    return True
