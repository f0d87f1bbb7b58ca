"""Output of every command: escaped, on the right stream, and unaffected if the reader has gone."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import TextIO

from rlhf_kit import escaping


def say(text: object, stream: TextIO | None = None) -> None:
    """Print `text`, which may hold names and data, on standard output or `stream`, if it is still read."""
    stream = stream or sys.stdout
    try:
        print(escaping.terminal(text), file=stream, flush=True)  # noqa: T201
    except BrokenPipeError:
        _send_nowhere(stream.fileno())


def complain(text: object) -> None:
    """`say` it on standard error."""
    say(text, sys.stderr)


class _Escaped(logging.Formatter):
    """The message, in which names and data are no escape sequences."""

    def format(self, record: logging.LogRecord) -> str:
        return escaping.terminal(super().format(record))


def escape_logs(*handlers: logging.Handler) -> None:
    """What is logged goes to the terminal as what is said does: by Python's own last handler, and `handlers`."""
    for handler in (logging.lastResort, *handlers):
        handler.setFormatter(_Escaped())


class _Stream(io.FileIO):
    """A standard stream whose reader may leave (`| head`): what follows goes nowhere, and the work goes on."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            _send_nowhere(self.fileno())
            return len(data)


def _send_nowhere(descriptor: int) -> None:
    """Python would complain of the lost reader again as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def outlive_readers() -> None:
    """From here on no write to standard output or error fails, for want of a reader or of letters in its encoding."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent
            continue
        stream.flush()
        raw = _Stream(stream.fileno(), "w", closefd=False)
        patient = io.TextIOWrapper(
            io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=stream.line_buffering
        )
        setattr(sys, name, patient)
