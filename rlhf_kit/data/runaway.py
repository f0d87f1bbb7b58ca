"""Whether a chat template, which is foreign code, ends at all: tried once in a process of its own."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from rlhf_kit.errors import UserError

try:
    import resource
except ImportError:  # Windows, which cannot fork either
    resource = None

SECONDS, MEBIBYTES, CHARACTERS = 5, 1024, 1 << 20  # of the processor, above what is taken, of two short turns
PATIENCE = 60  # seconds by the clock: a child that waits for something has found out nothing
_LARGE = 3  # the child's status
_tried: set[str] = set()


def refuse_runaway(template: str, render: Callable[[], str]) -> None:
    """Raises UserError where `render`, of a short dialogue by this template, runs or grows without end."""
    if template in _tried or resource is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child only renders
        child = os.fork()
    if not child:
        os._exit(_render(render))
    status = _waited(child)
    if status == -signal.SIGXCPU:
        excess = f"ran for {SECONDS} seconds"
    elif status == _LARGE:
        excess = f"wrote more than {CHARACTERS} characters or took {MEBIBYTES} MiB of memory"
    else:
        _tried.add(template)
        return
    raise UserError(
        f"The tokenizer's chat template does not terminate: for one short turn it {excess}. Fix the `chat_template` "
        "of "
        "the tokenizer, or give another one."
    )


def _render(render: Callable[[], str]) -> int:
    """In the child: the status to end with."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    taken = Path("/proc/self/statm")  # pages; a system without it has no such limit here
    if taken.is_file():
        most = int(taken.read_text().split()[0]) * resource.getpagesize() + MEBIBYTES * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        return _LARGE if len(render()) > CHARACTERS else 0
    except MemoryError:
        return _LARGE
    except BaseException:  # reported where a dialogue of the user's is rendered
        return 0


def _waited(child: int) -> int:
    """The status of the child; minus the number of the signal that ended it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 0
