"""Ctrl-C and SIGTERM: a command ends with one line and status 130 or 143, at whatever moment they come."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from rlhf_kit.launched import is_main_process

WAKING = 0.2  # seconds
Step = TypeVar("Step")

_commands: list[str] = []  # the command this process is there for; empty in a notebook or a test


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler wants the machine back."""

    status = 143


def become(command: str) -> None:
    """This process is `command` and nothing else: a signal may end it at once, and SIGTERM ends it as Ctrl-C does."""
    _commands[:] = [command]
    signal.signal(signal.SIGTERM, _terminate)


def is_own_process() -> bool:
    """Whether this process is there for a command alone, neither a notebook nor a test."""
    return bool(_commands)


def is_script() -> bool:
    """Whether the process was started by a script, not as `rlhf-kit`."""
    return _commands not in ([], ["rlhf-kit"])


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def status(interrupt: KeyboardInterrupt) -> int:
    """The exit status: 128 and the signal."""
    return getattr(interrupt, "status", 130)


@contextmanager
def before_anything() -> Iterator[None]:
    """Within, where modules are imported and nothing is at work, a signal ends the process there and then.

    As an exception it could come up in the middle of a library's own import, which takes it for a failure of its own.
    """
    if not is_own_process():
        yield
        return
    kept = {number: signal.signal(number, _leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


class Stop:
    """`is_asked` from the first Ctrl-C on, which is an exception only where the next step is waited for: elsewhere it
    could strike what puts things in order, or be dropped by what calls Python from C. The second is one anywhere."""

    def __init__(self) -> None:
        self.is_asked = self._waits = False

    def each(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The steps, until a stop is asked for."""
        while not self.is_asked:
            self._waits = True
            try:
                step = next(steps)
            except StopIteration:
                return
            finally:
                self._waits = False
            yield step

    def _ask(self, number: int, frame: FrameType | None) -> None:
        raises, self.is_asked = self._waits or self.is_asked, True
        if raises:
            raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Within, Ctrl-C asks for a stop."""
    stop = Stop()
    kept = signal.signal(signal.SIGINT, stop._ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, kept)


@contextmanager
def heard() -> Iterator[None]:
    """Within, where C waits for a key, a signal that comes just before the wait is heard.

    C looks for signals when one wakes it, and would sleep on this one until the next key; a clock wakes it now.
    """
    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return
    kept = signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, WAKING, WAKING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)


def _leave(number: int, frame: FrameType | None) -> None:
    if is_main_process():
        os.write(2, f"\n{_commands[0]}: interrupted before it did anything.\n".encode())
    os._exit(128 + number)
