"""How a recipe file runs as a script (`accelerate launch recipes/ppo.py`): as the installed module, by its own name.

Python puts a script's folder first in the search path, where `recipes/evaluate.py` would stand for the library
`evaluate`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from rlhf_kit import interrupts
from rlhf_kit.terminal import outlive_readers


def launch(stage: str) -> None:
    """Run `rlhf_kit.recipes.<stage>` and exit with its status."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    interrupts.become(stage)
    outlive_readers()
    with interrupts.before_anything():
        module = importlib.import_module(f"rlhf_kit.recipes.{stage}")
    sys.exit(module.main())
