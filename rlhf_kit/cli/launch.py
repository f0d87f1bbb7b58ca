"""How a script at the top runs (`accelerate launch recipes/ppo.py`): as the command of the installed package."""

from __future__ import annotations

import sys
from pathlib import Path

from rlhf_kit.cli.run import main
from rlhf_kit.terminal import interrupts, outlive_readers


def launch(*words: str) -> None:
    """Run a command with the script's options, and exit with its status."""
    folder = Path(sys.argv[0]).resolve().parent  # Python searches it first, and its names are none of a library
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    interrupts.become(words[-1])
    outlive_readers()
    sys.exit(main([*words, *sys.argv[1:]]))
