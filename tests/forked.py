"""A command in a process of its own, a fork of one that has the heavy imports behind it."""

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

CRASHED = 70  # the exit status of a `main` that raised


def forked(main: Callable, argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> int:
    """The process id of `main(argv)`, which exits with what that returns; all it says is put at the end of `log`."""
    child = os.fork()
    if child:
        return child
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= environment or {}
    status = CRASHED
    try:
        status = main(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
