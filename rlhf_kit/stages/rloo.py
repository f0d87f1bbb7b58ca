"""RLOO (留一法基線): the policy samples several answers to a prompt, each the baseline of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rlhf_kit.methods.online_config import RLOOConfig
from rlhf_kit.methods.rloo import RLOOTrainer
from rlhf_kit.stages.online import run
from rlhf_kit.stages.ppo import RewardArguments
from rlhf_kit.stages.run import run_stage


def start(options: Sequence[str] | Mapping[str, Any]) -> None:
    """Run the stage with its options, of a command line or by name. Raises UserError."""
    run_stage("rloo", RLOOConfig, partial(run, trainer_class=RLOOTrainer), options, extra_class=RewardArguments)
