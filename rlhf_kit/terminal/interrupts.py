"""Ctrl-C and SIGTERM: a command ends with one line and status 130 or 143, at whatever moment they come."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rlhf_kit.launched import is_main_process

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


def _leave(number: int, frame: FrameType | None) -> None:
    if is_main_process():
        os.write(2, f"\n{_commands[0]}: interrupted before it did anything.\n".encode())
    os._exit(128 + number)
