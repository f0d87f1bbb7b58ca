"""KTO (按讚與噓的最佳化): the policy learns from answers that are good or bad, each by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rlhf_kit.methods.config import KTOConfig
from rlhf_kit.methods.kto import KTOTrainer
from rlhf_kit.stages.preference import PreferenceArguments, run
from rlhf_kit.stages.run import run_stage


def start(options: Sequence[str] | Mapping[str, Any]) -> None:
    """Run the stage with its options, of a command line or by name. Raises UserError."""
    run_stage("kto", KTOConfig, partial(run, trainer_class=KTOTrainer), options, extra_class=PreferenceArguments)
