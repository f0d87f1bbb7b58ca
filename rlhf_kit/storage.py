"""Atomic writes, the record of them, and the lock of a folder: only recorded, unchanged files are overwritten.

Every command writes through a `Folder`. Its record, the hidden file `.rlhf_kit`, gets a line for each file before the
file appears: the command, the name, and a fingerprint of the content. So a run that is killed at any moment leaves no
file of its own that is not known, and what a user puts there, or in the place of a file of ours, is known to be his.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from rlhf_kit.errors import UserError
from rlhf_kit.hashes import file_hash

RECORD, LOCK = ".rlhf_kit", ".rlhf_kit.lock"
RUN = "a run of a stage"  # all stages write as one
HEADER = {"about": "What rlhf-kit wrote into this folder; it replaces and removes nothing else.", "version": 1}
HASHED = 16 * 2**20  # bytes; a larger file is known by its size and the time of its last change
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
TORCH_SAVE = re.compile(r"inline_container\.cc|basic_ios::clear")  # of its RuntimeErrors where a file is not whole
CLOCK = 2.0  # seconds that the start of a process may seem to move when the clock is set
NAMED = 5  # files that a message names
LONGEST_NAME, LONGEST_PATH = 255, 3800  # bytes; some are left for the names of what is written


@dataclass
class Entry:
    """A file, or a folder with all that is in it: who wrote it, whether it is still written, contents that it had."""

    by: str
    open: bool = False
    prints: list[dict] = field(default_factory=list)


@dataclass(frozen=True)
class Folder:
    """A folder that a command writes into. Names are relative to it and written with slashes.

    Args:
        path: need not exist.
        by: the command, such as "eval icl"; what another command wrote is not its own.
    """

    path: Path
    by: str

    # --- whose is it ------------------------------------------------------------------------------------------------

    def entries(self) -> dict[str, Entry]:
        """By name what the record says of this command's files. Raises UserError for a record that is not ours."""
        entries: dict[str, Entry] = {}
        for row in _rows(self.path):
            if row.get("by") != self.by:
                continue
            if row.get("forgotten"):
                entries.clear()
                continue
            entry = entries.setdefault(row["name"], Entry(self.by))
            entry.open = row.get("open", False)
            entry.prints += [row["print"]] if "print" in row else []
        return entries

    def foreign(self, names: Iterable[str]) -> list[str]:
        """Of these files, and of all in these folders, what exists and is not this command's own as it left it."""
        known = self.entries()
        return [name for name in dict.fromkeys(names) for name in self._files(name) if not self._owns(name, known)]

    def refuse_foreign(self, names: Iterable[str]) -> None:
        """Raises UserError where one of these exists and is not this command's own."""
        foreign = self.foreign(names)
        if foreign:
            raise UserError(
                f"{listed(foreign)} in {str(self.path)!r} would be overwritten, but is not recorded there as an "
                f"unchanged output of ours ({self.by}). Move it away, or choose another output."
            )

    def _files(self, name: str) -> list[str]:
        """The file itself, or the files of the folder; symbolic links are files and not followed."""
        path = self.path / name
        if path.is_symlink() or not path.is_dir():
            return [name] if os.path.lexists(path) else []
        return [file.relative_to(self.path).as_posix() for file in _walk(path) if file.name not in (RECORD, LOCK)]

    def _owns(self, name: str, known: dict[str, Entry]) -> bool:
        path = self.path / name
        above = [parent.as_posix() for parent in Path(name).parents][:-1]
        if any((self.path / part).is_symlink() for part in (name, *above)) or not path.is_file():
            return False
        entry = known.get(name)
        if any(known[part].open for part in (name, *above) if part in known):
            return True
        return entry is not None and fingerprint(path) in entry.prints

    # --- before hours are spent -------------------------------------------------------------------------------------

    def check(self, option: str, names: Iterable[str] = ()) -> None:
        """Whether files of these `names` can be written; nothing is made. `option`: that which gives the folder.

        Raises UserError where no folder can be, or no file in it (that is tried, as root may write by its rights alone
        into /proc and a disk that is read only), and for a file that is there and is not this command's own.
        """
        folder = self.path
        shown = f"{option} {str(folder)[:200]!r}"
        named, whole = (
            max(len(os.fsencode(part)) for part in (".", *folder.parts)),
            len(os.fsencode(folder.absolute())),
        )
        if named > LONGEST_NAME or whole > LONGEST_PATH:
            limits = f"a name may have {LONGEST_NAME} bytes, a path {LONGEST_PATH}"
            raise UserError(f"{shown}... is too long: {limits}. Give a shorter one.")
        home = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        if not home.is_dir():
            where = "is" if home == folder else f"lies under {str(home)!r}, which is"
            raise UserError(f"{shown} {where} {'a file' if home.is_file() else 'no folder'}; give a folder.")
        try:
            tempfile.TemporaryFile(dir=home).close()
        except OSError as error:
            raise UserError(
                f"{shown}: {str(home)!r} cannot be written into ({error.strerror}). Give another folder."
            ) from error
        self.refuse_foreign(names)

    def check_file(self, name: str, option: str, source: str | Path, source_option: str) -> None:
        """As `check`, of the one file that `option` gives, made of the `source` that `source_option` gives."""
        path = self.path / name
        self.check(option)
        if path.is_dir():
            raise UserError(f"{option} {str(path)!r} is a folder; give a file.")
        if path.exists() and os.path.exists(source) and path.samefile(source):
            raise UserError(
                f"{option} {str(path)!r} is the file of {source_option} {str(source)!r}; give another one."
            )
        self.refuse_foreign([name])

    # --- one at a time ----------------------------------------------------------------------------------------------

    def check_lock(self) -> dict | None:
        """The holder of the folder whose process has ended; None where there is none.

        Raises UserError where another process writes into the folder, or one of another machine may.
        """
        path = self.path / LOCK
        try:
            holder = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            holder = {}
        owner = f"process {holder.get('pid', '?')} on {holder.get('host', '?')!r}, since {holder.get('since', '?')}"
        if holder.get("host") != socket.gethostname():
            raise UserError(
                f"{str(self.path)!r} is held by another run ({owner}), and this machine cannot tell whether it is "
                f"still running. If it is not, remove {str(path)!r} and start again; otherwise give another folder."
            )
        if is_running(holder["pid"], holder["started"]):
            raise UserError(
                f"{str(self.path)!r} is held by another run ({owner}). Wait for it, or give another folder."
            )
        return holder

    def lock(self) -> dict | None:
        """Hold the folder until `unlock`; returns the holder that it was taken over from, whose process has ended.

        Raises UserError as `check_lock` does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        path, stale = self.path / LOCK, self.check_lock()
        if stale is not None:
            aside = path.with_name(f"{LOCK}.{os.getpid()}")
            with suppress(FileNotFoundError):  # another one takes it over
                path.rename(aside)
                if json.loads(aside.read_text(encoding="utf-8")) != stale:  # it already has
                    aside.rename(path)
                aside.unlink(missing_ok=True)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(_this_process()))
        except FileExistsError:
            self.check_lock()  # refuses
            raise UserError(f"{str(self.path)!r} is being taken by another run. Give another folder.") from None
        except OSError:
            path.unlink(missing_ok=True)  # a full disk
            raise
        return stale

    def unlock(self) -> None:
        (self.path / LOCK).unlink(missing_ok=True)

    # --- writing ----------------------------------------------------------------------------------------------------

    def write(self, name: str, content: str | bytes) -> Path:
        """A file that is there whole or not at all. Raises UserError where it would replace one that is not ours."""
        self.refuse_foreign([name])
        path = self.path / name
        return replace(
            path, content, lambda unfinished: self._note([{"name": name, "print": fingerprint(unfinished)}])
        )

    def claim(self, *names: str) -> None:
        """Before others write these files and folders, or we bit by bit: until `settle` they are ours as they are.

        Raises UserError where one exists that is not ours.
        """
        self.refuse_foreign(names)
        self._note([{"name": name, "open": True} for name in names])

    def mark(self, *names: str) -> None:
        """These folders are ours, and keep records of their own."""
        self._note([{"name": name} for name in names])

    def settle(self, *names: str) -> None:
        """These are written: what they hold now is ours, what comes later is not. Their modes follow the umask."""
        rows = []
        for name in names:
            files = self._files(name)
            follow_umask(self.path / file for file in files)
            rows += [{"name": file, "print": fingerprint(self.path / file)} for file in files]
            rows += [{"name": name}] if name not in files else []
        self._note(rows)

    def settle_all(self) -> None:
        """All that is still open is written, whole or not."""
        self.settle(*(name for name, entry in self.entries().items() if entry.open))

    def take(self, source: str) -> None:
        """Move all that stands in the folder `source`, which is ours, up into this one: `config.json` last.

        Without it no library takes a folder for a model. Raises UserError, and moves nothing, where something else
        would be replaced.
        """
        names = [file.removeprefix(f"{source}/") for file in self._files(source)]
        foreign = self.foreign(names)
        if foreign:
            raise UserError(
                f"{listed(foreign)} appeared in {str(self.path)!r} during the run. The complete output is in "
                f"{str(self.path / source)!r}: move the others away, then its files up."
            )
        follow_umask(self.path / source / name for name in names)
        self._note([{"name": name, "print": fingerprint(self.path / source / name)} for name in names])
        self.remove(
            *{name.partition("/")[0] for name in names if "/" in name}
        )  # such a folder is not mixed with the last
        for name in sorted(names, key=lambda name: name in ("config.json", "adapter_config.json")):
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.path / source / name, self.path / name)
        _prune(self.path / source)

    def remove(self, *names: str) -> None:
        """Remove these files and folders, as far as they are ours as we left them."""
        known = self.entries()
        for name in names:
            for file in self._files(name):
                if self._owns(file, known):
                    (self.path / file).unlink()
            _prune(self.path / name)
            for above in list((self.path / name).relative_to(self.path).parents)[:-1]:
                _prune(self.path / above)
        self._note([{"name": name} for name in names if name in known and known[name].open])

    def clear(self) -> None:
        """Remove all that this command wrote here and nobody has changed, and begin a new record of it."""
        known = self.entries()
        self.remove(*known)
        self._note([{"forgotten": True}] if known else [])

    def _note(self, rows: list[dict]) -> None:
        """Append to the record: in one piece, and on a line of its own whatever a kill left before it."""
        path = self.path / RECORD
        before = path.read_bytes()[-1:] if path.is_file() else b""
        lines = [] if before else [json.dumps(HEADER)]
        lines += [json.dumps({"by": self.by, **row}, ensure_ascii=False) for row in rows]
        if rows:
            self.path.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(b"\n" * (before not in (b"", b"\n")) + "".join(f"{line}\n" for line in lines).encode())


def replace(path: Path, content: str | bytes, before: Callable[[Path], None] = lambda unfinished: None) -> Path:
    """Write a file that is there whole or not at all, whatever stood there; `before` it takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}{RECORD}")
    try:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        before(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def as_json(value: Any) -> Any:
    """What JSON can hold: NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_lines(rows: Iterable[Any]) -> str:
    # `default`: a Parquet file holds dates and the like
    return "".join(json.dumps(as_json(row), ensure_ascii=False, default=str) + "\n" for row in rows)


def whole_lines(path: Path) -> int:
    """How many lines of a file end; what a kill or a full disk cut off does not."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def keep_lines(path: Path, count: int | None = None) -> None:
    """Cut a file off after its first `count` whole lines, None: after all of them."""
    if path.is_file():
        with path.open("r+b") as file:
            lines = file.read().split(b"\n")[:-1][:count]
            file.truncate(sum(map(len, lines)) + len(lines))


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What two records of settings say otherwise; "" where they are the same.

    >>> changes({"seed": 0, "n": 1}, {"seed": 1, "n": 1})
    'seed 0, now 1'
    """
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    return ", ".join(f"{name} {was.get(name)!r}, now {now.get(name)!r}" for name in names)


def _this_process() -> dict:
    started = psutil.Process().create_time()
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": started, "since": time.strftime("%F %T")}


def is_running(pid: int, started: float) -> bool:
    """Whether the process of this machine that began at `started` (seconds since 1970) goes on: numbers are reused."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < CLOCK
    except psutil.NoSuchProcess:
        return False


def makers(folder: Path) -> list[Folder]:
    """Every command that has written into this folder and those in it, with the folder that it wrote into."""
    homes = [path.parent for path in _walk(folder) if path.name == RECORD] if folder.is_dir() else []
    return [Folder(home, by) for home in homes for by in dict.fromkeys(row.get("by") for row in _rows(home)) if by]


def strangers(folder: Path) -> list[str]:
    """The files in this folder and those in it that no command of ours is recorded to have written as they are."""
    if folder.is_symlink() or not folder.is_dir():
        return [folder.name] if os.path.lexists(folder) else []
    paths = {path for path in _walk(folder) if path.name not in (RECORD, LOCK)}
    for maker in makers(folder):
        inside = {path.relative_to(maker.path).as_posix() for path in paths if path.is_relative_to(maker.path)}
        paths -= {maker.path / name for name in inside - set(maker.foreign(inside))}
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def clear(folder: Path) -> None:
    """Remove all that commands of ours wrote into this folder and those in it; a record goes with the last file."""
    for maker in makers(folder):
        maker.clear()
    for record in [path for path in _walk(folder) if path.name == RECORD][::-1] if folder.is_dir() else []:
        if list(record.parent.iterdir()) == [record]:  # those within it are gone by now
            record.unlink()
            _prune(folder)


def _rows(folder: Path) -> list[dict]:
    """The record's lines, but for the first. Raises UserError for a record that is not ours."""
    path = folder / RECORD
    rows = [_row(line) for line in path.read_bytes().split(b"\n")] if path.is_file() else []
    if any(rows) and (rows[0] or {}).get("about") != HEADER["about"]:
        raise UserError(f"{str(path)!r} is not a record of this kit, which keeps one under this name. Move it away.")
    return [row for row in rows[1:] if row is not None]


def _row(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except ValueError:  # cut off by a kill or a full disk
        return None
    return row if isinstance(row, dict) else None


def _walk(folder: Path) -> Iterator[Path]:
    for item in sorted(folder.iterdir()):
        if item.is_dir() and not item.is_symlink():
            yield from _walk(item)
        else:
            yield item


def _prune(folder: Path) -> None:
    """Remove the folder and those in it, as far as they are empty."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for item in folder.iterdir():
        _prune(item)
    if not any(folder.iterdir()):
        folder.rmdir()


def write_fault(error: BaseException) -> str | None:
    """What kept a file from being written, where that is what an exception means; else None.

    safetensors and torch raise exceptions of their own, the latter without the system's reason.
    """
    while error is not None:
        match = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else int(match[1]) if match else None
        if number in UNWRITABLE:
            name = getattr(error, "filename", None)
            return os.strerror(number) + (f" ({str(name)!r})" if name else "")
        if isinstance(error, RuntimeError) and TORCH_SAVE.search(str(error)):
            return "a file could not be written completely"
        error = error.__cause__ or error.__context__
    return None


def fingerprint(path: Path) -> dict:
    """What tells a file's content from another's: its size, and its hash or the time of its last change (ns)."""
    status = path.stat()
    if status.st_size > HASHED:
        return {"size": status.st_size, "changed": status.st_mtime_ns}
    return {"size": status.st_size, "sha256": file_hash(path)}


def follow_umask(paths: Iterable[Path]) -> None:
    """Files get the mode that the user's umask gives new ones; safetensors makes its own readable by him alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in paths:
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o666 & ~mask)


def listed(names: list[str]) -> str:
    """`a, b and 3 more`."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
