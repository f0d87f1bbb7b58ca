"""How a script at the top runs (`accelerate launch recipes/ppo.py`): as the command of the installed package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from rlhf_kit.terminal import interrupts, outlive_readers


def launch(stage: str) -> None:
    """Run a stage, or a subcommand of `eval`, with the script's options, and exit with its status."""
    folder = Path(sys.argv[0]).resolve().parent  # Python searches it first, and its names are none of a library
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    interrupts.become(stage)
    outlive_readers()
    is_eval = folder.name == "eval"
    with interrupts.before_anything():
        module = importlib.import_module("rlhf_kit.eval.commands" if is_eval else f"rlhf_kit.stages.{stage}")
    sys.exit(module.main([stage, *sys.argv[1:]] if is_eval else None))
