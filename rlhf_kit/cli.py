"""`rlhf-kit`: thin, and quick to start. Torch is imported only by the stage that runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from rlhf_kit import __version__, interrupts
from rlhf_kit.errors import did_you_mean
from rlhf_kit.recipes.help import STAGES, print_root, print_stage

TOOLS = {  # what has no recipe: the module whose `main` takes the rest of the line
    "demo": "rlhf_kit.demo",
    "eval": "rlhf_kit.recipes.evaluate",
    "score": "rlhf_kit.eval.score",
    "convert": "rlhf_kit.data.convert",
    "merge": "rlhf_kit.recipes.merge",
    "doctor": "rlhf_kit.doctor",
}
COMMANDS = (*STAGES, *TOOLS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `rlhf-kit STAGE ...`; returns the exit status.

    0 done, 1 the doctor found something, 2 a mistake of the user, 130 interrupted.
    """
    if argv is None:
        interrupts.become("rlhf-kit")
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print_root(__version__)
        return 0
    command, rest = argv[0], argv[1:]
    if command in ("-V", "--version"):
        print(f"rlhf-kit {__version__}")
        return 0
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS)
        print(f"rlhf-kit: there is no command {command!r}.{hint} Commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    if command not in TOOLS and {"-h", "--help", "--help-all"} & {*rest}:
        print_stage(command, everything="--help-all" in rest)
        return 0
    with interrupts.before_anything():
        module = importlib.import_module(TOOLS.get(command, f"rlhf_kit.recipes.{command}"))
    try:
        return module.main(rest)
    except KeyboardInterrupt as interrupt:  # a stage and an evaluation say themselves how to go on
        print(f"\nrlhf-kit {command}: interrupted. The same command begins again.", file=sys.stderr)
        return interrupts.status(interrupt)


if __name__ == "__main__":
    sys.exit(main())
