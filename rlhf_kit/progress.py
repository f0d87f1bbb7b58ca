"""Progress, speed and remaining time of a task: a bar on a terminal, lines in a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable

import rich.progress
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlhf_kit.terminal.console import Console

QUIET_FOR = 2.0  # seconds: a work that takes no more says nothing
EVERY = 10.0  # seconds between lines where there is no terminal
WIDE = 100  # columns of a terminal from which there is room for a long bar and the time gone


class Progress:
    """Counts what is done of `total`, and shows it between `start` and `stop`, or in a `with`.

    Args:
        total: of `unit`, such as "lists". done: of them before, by a run that is resumed.
        shown: False on all processes but one.
        numbers: what goes on has numbers to `tell`: they stand beside the bar, which is there from the start and
            stays; elsewhere each is a line, and there are no others.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        shown: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        done: int = 0,
        numbers: bool = False,
    ):
        self.total, self.unit, self.shown, self.numbers = total, unit, shown, numbers
        self.console = console or Console(stderr=True)
        self.clock = clock
        self.before = self.done = done
        self.bar: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        return self.start()

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> Progress:
        self.started = self.clock()
        self.last_line = self.started + QUIET_FOR - EVERY
        if self.numbers and self.shown and self.console.is_terminal:
            self._show()
        return self

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()

    def add(self, count: int) -> None:
        self.reach(self.done + count)

    def reach(self, done: int) -> None:
        """`done` of all are done."""
        self.done = done
        now = self.clock()
        seconds = now - self.started
        if not self.shown or not seconds or seconds < QUIET_FOR and not self.numbers:
            return
        rate = (done - self.before) / seconds
        if self.console.is_terminal:
            self._show(f"{rate:.1f}/s" if self.numbers else f"{rate:.1f} {self.unit}/s")
        elif rate and not self.numbers and now - self.last_line >= EVERY:
            self.last_line = now
            left = (self.total - done) / rate
            line = f"{done}/{self.total} {self.unit}  {rate:.1f} {self.unit}/s  {left:.0f} s left"
            self.console.print(line)

    def tell(self, numbers: str) -> None:
        """The numbers that matter now: beside the bar, or as a line where there is none."""
        if self.bar is not None:
            self.bar.update(self.task, numbers=numbers)
        elif self.shown:
            self.console.print(f"{self.unit} {self.done}/{self.total}  {numbers}")

    def _show(self, rate: str = "") -> None:
        if self.bar is None:
            self.bar = rich.progress.Progress(*self._columns(), console=self.console, transient=not self.numbers)
            self.task = self.bar.add_task("", total=self.total, completed=self.before, rate=rate, numbers="")
            self.bar.start()
        self.bar.update(self.task, completed=self.done, rate=rate)

    def _columns(self) -> list[rich.progress.ProgressColumn]:
        """All of it on 80 columns."""
        narrow = self.console.width < WIDE
        columns = [BarColumn(bar_width=8 if narrow else 24), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")]
        columns += [] if narrow else [TimeElapsedColumn()]
        columns += [TextColumn("left"), TimeRemainingColumn()]
        numbers = TextColumn("{task.fields[numbers]}", style="cyan", markup=False)
        return [*columns, numbers] if self.numbers else columns
