"""How far a measurement is, how fast it goes and what is left; silent while it takes no more than two seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rlhf_kit.terminal.console import Console

QUIET_FOR = 2.0  # seconds
EVERY = 10.0  # seconds between lines where there is no terminal
WIDE = 100  # columns of a terminal from which there is room for a long bar and the time gone


def progress_bar(console: Console, *more: ProgressColumn, transient: bool = False) -> Progress:
    """Done of all, the rate (a field of the task), time gone and left, and `more`; all of it on 80 columns."""
    narrow = console.width < WIDE
    columns = [BarColumn(bar_width=8 if narrow else 24), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")]
    columns += [] if narrow else [TimeElapsedColumn()]
    columns += [TextColumn("left"), TimeRemainingColumn()]
    return Progress(*columns, *more, console=console, transient=transient)


class Counter:
    """Counts what is done: a bar on a terminal; elsewhere (a file, a notebook's log) a plain line now and then.

    Args:
        total: of `unit`, such as "lists".
        shown: False on all processes but one.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        shown: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.unit, self.shown = total, unit, shown
        self.console = console or Console(stderr=True)
        self.clock = clock
        self.done = 0
        self.bar: Progress | None = None

    def __enter__(self) -> Counter:
        self.started = self.clock()
        self.told = self.started + QUIET_FOR - EVERY
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.stop()

    def add(self, count: int) -> None:
        self.done += count
        now = self.clock()
        seconds = now - self.started
        if not self.shown or seconds < QUIET_FOR:
            return
        rate = self.done / seconds
        if self.console.is_terminal:
            self._show(f"{rate:.1f} {self.unit}/s")
        elif now - self.told >= EVERY:
            self.told = now
            left = (self.total - self.done) / rate
            line = f"{self.done}/{self.total} {self.unit}  {rate:.1f} {self.unit}/s  {left:.0f} s left"
            self.console.print(line)

    def _show(self, rate: str) -> None:
        if self.bar is None:
            self.bar = progress_bar(self.console, transient=True)
            self.task = self.bar.add_task("", total=self.total, rate=rate)
            self.bar.start()
        self.bar.update(self.task, completed=self.done, rate=rate)
