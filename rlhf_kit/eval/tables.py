"""What a table of measurements is: cells, each made once, and what is reported of all of them (一整張評測表).

A table is a subclass of `TableTask` with an options dataclass; `runner.run` does everything else: it checks, skips the
cells that are finished, makes the others one by one and reports.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from rlhf_kit.eval.task import OutputArguments


class TableTask(ABC):
    """A table of measurements.

    A subclass sets `name`, `files` (what `write` writes), `beside` (what else is there) and `Arguments`.
    """

    name: ClassVar[str]
    files: ClassVar[Sequence[str]]
    beside: ClassVar[str]
    Arguments: ClassVar[type[OutputArguments]]

    def __init__(self, options: Any):
        """Raises UserError with all faults of what the table is made of."""
        self.options = options
        self.folder = None if options.output_dir is None else Path(options.output_dir)
        self.done: list[Any] = []  # the cells that are finished
        self.cells = self.read()

    @abstractmethod
    def read(self) -> Sequence[Any]:
        """The cells, in the order in which they are made; all that they need is read and checked."""

    def is_finished(self, cell: Any) -> bool:
        """Whether nothing of it is left to be made. Raises UserError where the folder holds one of other settings."""
        return False

    @abstractmethod
    def plan(self) -> None:
        """Say what would be made, after all checks."""

    def begin(self) -> None:  # noqa: B027, most tables have nothing to prepare
        """Before the first cell is made."""

    @abstractmethod
    def make(self, cell: Any) -> None:
        """Make what is left of it, on every process alike."""

    @abstractmethod
    def after(self, cell: Any) -> None:
        """Check or write what a cell has given; on the main process."""

    @abstractmethod
    def report(self) -> Any:
        """Of the cells that are finished."""

    @abstractmethod
    def show(self, report: Any) -> None:
        """On the terminal."""

    @abstractmethod
    def write(self, report: Any) -> None:
        """Write `files` into the folder, the record last: who finds that one finds the others."""
