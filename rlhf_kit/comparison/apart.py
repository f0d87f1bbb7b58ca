"""Each piece of work in a process of its own, so that its memory and seconds are its own.

    this process  →  a warm one, which has imported everything and loaded nothing  →  a fork of it for each piece

A fork begins at once where a new Python takes five seconds, and no thread, device or weight of this process is in it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_kit.errors import UserError

# `python -c` looks in the working folder first, where a folder may be called as the package is; what a user's own
# functions are in is looked for there, last.
LAST = "import sys; here = sys.path.pop(0); import rlhf_kit; sys.path.append(here); "
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of `ru_maxrss`


@dataclass(frozen=True)
class Outcome:
    """What a piece of work returned, or why it did not; and what it took: the whole process, its seconds and the most
    memory that it had at once, in bytes."""

    value: Any
    fault: str | None
    seconds: float
    memory: int


class Warm:
    """A context: the warm process, which ends with it, and with it whatever it is at.

    Args:
        module: of the functions that are run, imported there.
    """

    def __init__(self, module: str):
        self.module = module

    def __enter__(self) -> Warm:
        command = [sys.executable, "-c", f"{LAST}from {__name__} import serve; serve({self.module!r})"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)  # a record of each folder says what was being written
        except ProcessLookupError:
            pass
        self._process.communicate()

    def run(self, function: str, arguments: Mapping[str, Any], log: Path) -> Outcome:
        """A function of the module with JSON arguments and value; what it says is put at the end of `log`."""
        self._process.stdin.write(json.dumps([function, arguments, str(log)]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The process that runs the work has ended with status {self._process.wait()}.")
        return Outcome(**json.loads(line))


# --- in the warm process --------------------------------------------------------------------------------------------


def serve(module: str) -> None:
    """Answer the requests on standard input, one a line, until it ends."""
    functions = importlib.import_module(module)
    gc.freeze()  # a fork that looked for garbage would copy every page
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed
    for line in sys.stdin:
        answers.write(json.dumps(forked(functions, *json.loads(line))) + "\n")
        answers.flush()


def forked(functions: Any, function: str, arguments: Mapping[str, Any], log: str) -> dict[str, Any]:
    """The fields of an `Outcome`."""
    reader, writer = os.pipe()
    began = time.perf_counter()
    child = os.fork()
    if not child:
        os.close(reader)
        _work(functions, function, arguments, log, writer)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status, usage = os.wait4(child, 0)
    took = {"seconds": time.perf_counter() - began, "memory": usage.ru_maxrss * RSS_UNIT}
    if not text:
        why = (
            f"signal {os.WTERMSIG(status)}"
            if os.WIFSIGNALED(status)
            else f"status {os.waitstatus_to_exitcode(status)}"
        )
        return {"value": None, "fault": f"its process ended with {why}; was the memory full?", **took}
    return json.loads(text) | took


def _work(functions: Any, function: str, arguments: Mapping[str, Any], log: str, writer: int) -> None:
    """In the fork: the work, what it returned into the pipe, the end."""
    with open(os.devnull) as nothing, open(log, "ab") as file:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    outcome: dict[str, Any] = {"value": None, "fault": None}
    try:
        outcome["value"] = getattr(functions, function)(**arguments)
        text = json.dumps(outcome)
    except UserError as error:
        text = json.dumps(outcome | {"fault": str(error)})
    except BaseException as error:
        traceback.print_exc()
        text = json.dumps({"value": None, "fault": f"{type(error).__name__}: {error}"})
    sys.stdout.flush()
    sys.stderr.flush()
    with os.fdopen(writer, "w") as pipe:
        pipe.write(text)
    os._exit(0)
