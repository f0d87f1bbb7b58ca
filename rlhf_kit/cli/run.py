"""`rlhf-kit`, and every way in which its commands end.

Quick to start: help and what is wrong with the options come before torch is imported.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from rlhf_kit import __version__
from rlhf_kit.cli.commands import COMMANDS, GROUPS, STAGES, Command, command_of, planned
from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.launched import accelerated, is_main_process
from rlhf_kit.references import imported
from rlhf_kit.terminal import complain, escape_logs, interrupts, outlive_readers, say

# What is wrong with a name of the user's, wherever it turns out.
PLACES = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM}
READ_BY_THEMSELVES = {*STAGES, "plan"}  # several records a command line
HELP = {"-h", "--help", "--help-all", "--help_all"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `rlhf-kit COMMAND ...`; returns the exit status.

    0 done, 1 a full disk, a NaN, what the doctor found or a plan that does not fit, 2 a mistake of the user, 130
    Ctrl-C, 143 SIGTERM.
    """
    if argv is None:
        interrupts.become("rlhf-kit")
        outlive_readers()
    escape_logs()
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] in (["-V"], ["--version"]):
        say(f"rlhf-kit {__version__}")
        return 0
    if not argv or argv[0] in (*HELP, "help"):
        _help().print_root()
        return 0
    size = 2 if argv[0] in GROUPS else 1
    if size == 2 and (len(argv) == 1 or argv[1] in HELP):
        _help().print_group(argv[0])
        return 0 if len(argv) > 1 else 2
    words, rest = " ".join(argv[:size]), argv[size:]
    command = command_of(words)
    if command is None:
        complain(_unknown(argv[0], argv[1] if size == 2 else None))
        return 2
    if HELP & {*rest}:
        _help().print_command(words, command, everything=bool({"--help-all", "--help_all"} & {*rest}))
        return 0
    return _ended(words, command, rest)


def _help() -> Any:
    with interrupts.before_anything():
        return importlib.import_module("rlhf_kit.cli.help")


def _unknown(first: str, second: str | None) -> str:
    """That there is no such command, and the nearest."""
    if second is None:
        names = [*(words for words in COMMANDS if " " not in words), *GROUPS]
        nested = [words for words in COMMANDS if words.partition(" ")[2] == first]
        hint = f" Did you mean {nested[0]!r}?" if nested else did_you_mean(first, names)
        return f"rlhf-kit: there is no command {first!r}.{hint} Commands: {', '.join(names)}."
    names = [words.partition(" ")[2] for words in COMMANDS if words.startswith(f"{first} ")]
    hint = did_you_mean(second, names)
    return f"rlhf-kit {first}: there is no command {second!r}.{hint} Commands: {', '.join(names)}."


def _ended(words: str, command: Command, argv: list[str]) -> int:
    """Run a command, and tell how it ended, from the first process of those that were launched."""
    try:
        return _run(words, command, argv)
    except UserError as error:
        return _told(f"rlhf-kit {words}: {error}", error.status)
    except KeyboardInterrupt as interrupt:
        advice = "\n".join(getattr(interrupt, "__notes__", ())) or command.interrupted
        return _told(f"\n{interrupts.told(interrupt)} {advice}", interrupts.status(interrupt))
    except Exception as error:
        return _told(*_fault(words, command, error))


def _told(message: str, status: int) -> int:
    if is_main_process():
        complain(message)
    return status


def _fault(words: str, command: Command, error: Exception) -> tuple[str, int]:
    """The message and the status of a full disk, and of a name that cannot be a file's. Raises any other error."""
    advice = "\n".join(getattr(error, "__notes__", ()))
    if advice:
        return f"rlhf-kit {words}: {advice}", 1
    fault = importlib.import_module("rlhf_kit.storage").write_fault(error) if command.unwritten else None
    if fault is not None:
        return f"rlhf-kit {words}: {command.output} cannot be written: {fault}. {command.unwritten}", 1
    if isinstance(error, OSError) and error.errno in PLACES and error.filename is not None:
        place = f"{str(error.filename)[:200]!r}: {error.strerror}"
        return f"rlhf-kit {words}: {place}. Give an existing file or folder that this account may access.", 2
    raise error


def _run(words: str, command: Command, argv: list[str]) -> int:
    """Check the options by their source, import what runs the command, and run it: here, or on several processes."""
    with interrupts.before_anything(), _uncollected():
        declared, reading = (importlib.import_module(f"rlhf_kit.options.{name}") for name in ("declared", "reading"))
        options, gone = command.options, command.renamed
        if words == "plan":
            argv, options, gone = planned(argv)
        renamed = declared.constant(gone) if gone else {}
        values = reading.read(words, argv, declared.declared_in_source(list(options.values())), renamed)
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        configuration = None if words == "plan" else values.get("accelerate")
        if configuration in (None, accelerated()):
            run = _runner(words, command, argv)
        else:
            launcher = importlib.import_module("rlhf_kit.stages.launching").launcher
            again = partial(_run, words, command, argv)
            run = launcher(words, argv, configuration, again, values.get("stop_within"))
    status = run()
    return status if isinstance(status, int) else 0


def _runner(words: str, command: Command, argv: list[str]) -> Callable[[], Any]:
    """What runs the command in this process."""
    run = imported(command.run, command.extra)
    if "transformers" in sys.modules:
        importlib.import_module("rlhf_kit.processes").quiet()
    if words in READ_BY_THEMSELVES:
        return partial(run, argv)
    if words == "completion":
        run = partial(run, COMMANDS, GROUPS)
    if command.task:
        kind = importlib.import_module("rlhf_kit.eval.commands").task_named(command.task)
        run, cls = partial(run, kind), kind.Arguments
    else:
        (cls,) = map(imported, command.options.values())
    return lambda: run(importlib.import_module("rlhf_kit.options.reading").read_record(words, cls, argv))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Within, nobody looks for garbage, and what is there at the end is never searched again.

    Imports make 400,000 objects that stay: searching them over and over took a quarter of the start of a stage.
    """
    if not interrupts.is_own_process():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
