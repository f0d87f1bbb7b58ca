"""Ctrl-C and SIGTERM: a command ends with one line and status 130 or 143, at whatever moment they come."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from rlhf_kit.launched import is_main_process

WAKING = 0.2  # seconds
ECHO = 5.0  # seconds in which launchers hand on what a scheduler has sent to all processes: it is one signal
ASKED = (
    "\nSIGTERM: the run ends when this step is done and saved, within {:g} s; another SIGTERM ends it at once.\n"
    "收到 SIGTERM：做完這一步、存檔後結束；再收到一次就立刻結束。\n"
)
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


def told(interrupt: KeyboardInterrupt) -> str:
    return "Stopped by SIGTERM 收到 SIGTERM，已停止." if isinstance(interrupt, Terminated) else "Interrupted."


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


class Grace:
    """Within, from `begin` on, the first SIGTERM makes `is_asked` true. After `seconds`, and by another SIGTERM, the
    process ends as it does without.

    A worker that was forked within, of a data loader say, hears a signal to all of the processes too, and works on.
    """

    def __init__(self, seconds: float):
        self.seconds, self.is_asked = seconds, False
        self._asked_at, self._begun, self._over = 0.0, False, False
        self._asked, self._left = threading.Event(), threading.Event()
        self._process = os.getpid()

    def __enter__(self) -> Grace:
        self._kept = signal.signal(signal.SIGTERM, self._ask)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._kept)
        self._left.set()
        self._asked.set()

    def begin(self) -> None:
        self._begun = True

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            signal.alarm(math.ceil(self.seconds) + 1)  # should nobody end it before
        elif not self._begun or self._over or self.is_asked and time.monotonic() - self._asked_at > ECHO:
            raise Terminated
        elif not self.is_asked:
            self.is_asked, self._asked_at = True, time.monotonic()
            self._asked.set()
            if is_main_process():
                os.write(2, ASKED.format(self.seconds).encode())

    def _watch(self) -> None:
        """In a thread of its own: a clock that no library or reward function takes for itself."""
        self._asked.wait()
        if not self._left.wait(self.seconds):
            self._over = True
            os.kill(self._process, signal.SIGTERM)


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
    try:  # the clock is set in here: Ctrl-C may come as it returns
        signal.setitimer(signal.ITIMER_REAL, WAKING, WAKING)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)


def _leave(number: int, frame: FrameType | None) -> None:
    if is_main_process():
        os.write(2, f"\n{_commands[0]}: interrupted before it did anything.\n".encode())
    os._exit(128 + number)
