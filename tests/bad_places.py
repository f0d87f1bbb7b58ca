"""Places where there is no file to read, and a stop for readers that do not end."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LINKS = {"a device": "/dev/zero", "no bytes": "/dev/null", "a terminal": "/dev/stdin", "a link to nothing": "bad.none"}
LINKS |= {"memory": "/proc/self/mem", "a log": "/proc/kmsg", "a number": "/sys/kernel/profiling"}


def made(kind: str, suffix: str, good: str) -> str:
    """A place of this kind, here; `good` is a file."""
    path = Path(f"bad{suffix}")
    if kind in LINKS:
        path.symlink_to(LINKS[kind])
    elif kind == "a loop of links":
        path.symlink_to(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a folder of such folders":
        (path / f"train{suffix}").mkdir(parents=True)
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder with a pipe":
        path.mkdir()
        for split in ("train", "test", "validation"):
            os.mkfifo(path / f"{split}{suffix}")
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "a file that may not be read":
        path.write_text("{}")
        path.chmod(0)
    return {
        "a name too long": "./" + "x" * 300 + suffix,
        "a word too long": "bad" * 100,
        "under a file": f"{good}/{path}",
    }.get(kind, str(path))


@contextmanager
def ended() -> Iterator[None]:
    """Within, a reader that does not end is stopped."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it does not end"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
