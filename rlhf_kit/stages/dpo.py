"""DPO (直接偏好最佳化): the policy learns people's rankings themselves, without a reward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rlhf_kit.methods.config import DPOConfig
from rlhf_kit.methods.dpo import DPOTrainer
from rlhf_kit.stages.preference import PreferenceArguments, run
from rlhf_kit.stages.run import run_stage


def start(options: Sequence[str] | Mapping[str, Any]) -> None:
    """Run the stage with its options, of a command line or by name. Raises UserError."""
    run_stage("dpo", DPOConfig, partial(run, trainer_class=DPOTrainer), options, extra_class=PreferenceArguments)
