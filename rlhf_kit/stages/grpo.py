"""GRPO (群組相對策略最佳化): each of a group of answers to a prompt is compared with the group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rlhf_kit.methods.grpo import GRPOTrainer
from rlhf_kit.methods.online_config import GRPOConfig
from rlhf_kit.stages.online import run
from rlhf_kit.stages.ppo import RewardArguments
from rlhf_kit.stages.run import run_stage


def start(options: Sequence[str] | Mapping[str, Any]) -> None:
    """Run the stage with its options, of a command line or by name. Raises UserError."""
    run_stage("grpo", GRPOConfig, partial(run, trainer_class=GRPOTrainer), options, extra_class=RewardArguments)
