"""A run while it trains: its `metrics.jsonl` as it grows, its state, its last figures. Needs no torch."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from rlhf_kit.errors import UserError
from rlhf_kit.inputs import MOST_JSON, check_regular
from rlhf_kit.pages.charts import is_number
from rlhf_kit.report.doctor import METRICS, RECORD, read_record
from rlhf_kit.storage import LOCK, RUN, Folder

TAIL = 2**16  # bytes at the end of metrics.jsonl, in which the last figures of a run are looked for
BLOCK = 2**23  # bytes read at once
KEPT = 256  # of what was read, to know the file again
RUNNING, ENDED, STOPPED = "running", "ended", "stopped"
FIGURES = ("reward", "kl", "completions/length", "loss", "eval_loss", "accuracy", "eval_accuracy")
OF_PPO = FIGURES[:3]  # whose loss says nothing


@dataclass
class Log:
    """The rows of a `metrics.jsonl`, read as it grows. A list that was handed out does not change."""

    path: Path
    rows: list[dict] = field(default_factory=list)
    begun: int = 0  # how often it was read from its beginning: it was replaced or cut
    _file: tuple[int, int] | None = None
    _end: int = 0  # bytes that were read: whole lines
    _last: bytes = b""

    def read(self) -> None:
        """Add the lines that were written since; a last one that is half written waits for its rest.

        Raises UserError for one that is too large.
        """
        if _mark(self.path)[1] is None:
            self.rows, self._file = [], None
            return
        check_regular(self.path, MOST_JSON)
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            identity = (status.st_dev, status.st_ino)
            file.seek(self._end - len(self._last))
            if identity != self._file or file.read(len(self._last)) != self._last:
                self.rows, self._file, self._end, self._last = [], identity, 0, b""
                self.begun += 1
                file.seek(0)
            rows, half = [], b""
            while new := file.read(BLOCK):
                whole, newline, half = (half + new).rpartition(b"\n")
                rows += rows_of(whole)
                self._end += len(whole) + len(newline)
                self._last = (self._last + whole[-KEPT:] + newline)[-KEPT:]
        self.rows = self.rows + rows


def rows_of(lines: bytes) -> list[dict]:
    """The log entries among these lines; what is none is left out."""
    texts = [line for line in lines.decode("utf-8", errors="replace").split("\n") if line.strip()]
    try:
        values = json.loads(f"[{','.join(texts)}]")  # at once: the rows share the texts of their keys
    except (ValueError, RecursionError):
        values = [value for text in texts if (value := _parsed(text)) is not None]
    return [row for row in values if isinstance(row, dict) and is_number(row.get("step"))]


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# --- at a glance ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Glance:
    """A run as a line of a list. `stage`: "" where nothing tells it; `reason`: why it ended early, as it says."""

    state: str
    stage: str
    step: int | None
    seconds: float | None
    figures: Mapping[str, float]
    reason: str = ""


def glance(folder: Path) -> Glance:
    """From the end of the run's files, of which none is read that has not changed."""
    record, last = _record(*_mark(folder / RECORD)), _last_figures(*_mark(folder / METRICS))
    stage = record.get("stage") or ("ppo" if {"reward", "kl"} <= last.keys() else "")
    shown = OF_PPO if {"reward", "kl"} <= last.keys() else FIGURES
    return Glance(
        state_of(folder),
        stage if isinstance(stage, str) else "",
        last.get("step"),
        last.get("time"),
        {key: last[key] for key in shown if key in last},
        record["stopped"] if isinstance(record.get("stopped"), str) else "",
    )


def state_of(folder: Path) -> str:
    """ENDED: it has a record; RUNNING: a process holds the folder; STOPPED: neither, it was cut off."""
    if _mark(folder / RECORD)[1] is not None:
        return ENDED
    if _mark(folder / LOCK)[1] is None:
        return STOPPED
    try:
        Folder(folder, RUN).check_lock()
    except UserError:  # by a process that goes on, or of another machine
        return RUNNING
    return STOPPED


def _mark(path: Path) -> tuple[Path, tuple[int, int, int] | None]:
    """A file, and what differs once it was written; None for what is none, or a link."""
    try:
        status = path.lstat()
    except OSError:
        return path, None
    mark = (status.st_ino, status.st_size, status.st_mtime_ns)
    return path, mark if stat.S_ISREG(status.st_mode) else None


@lru_cache(4096)
def _record(path: Path, mark: tuple[int, int, int] | None) -> dict:
    try:
        return (mark and read_record(path.parent)) or {}
    except UserError:
        return {}


@lru_cache(4096)
def _last_figures(path: Path, mark: tuple[int, int, int] | None) -> dict[str, float]:
    """The last number of each key in the last lines; none where there is no such file."""
    if mark is None:
        return {}
    with path.open("rb") as file:
        file.seek(max(0, mark[1] - TAIL))
        lines = file.read(2 * TAIL)
    lines = lines[: lines.rfind(b"\n") + 1]  # the first may be cut: then it is none
    last: dict[str, float] = {}
    for row in rows_of(lines):
        last |= {key: value for key, value in row.items() if is_number(value)}
    return last
