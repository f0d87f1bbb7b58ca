"""The methods that can be compared: the stage that trains each, what it learns from, and what its strength is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rlhf_kit.references import imported
from rlhf_kit.stages.arguments import Settings, parse
from rlhf_kit.stages.run import complete_for_machine

PROMPTS, RANKINGS = "prompts", "rankings"


@dataclass(frozen=True)
class Stage:
    """A stage by name; `module:Class` of the records of its own options, which are imported when they are read."""

    name: str
    options: str
    extra: str | None = None

    @property
    def records(self) -> tuple[type, type | None]:
        return imported(self.options), None if self.extra is None else imported(self.extra)

    def settings(self, options: Mapping[str, Any]) -> Settings:
        """What these options and their `config` come to; nothing is loaded. Raises UserError with all faults."""
        own, extra = self.records
        return parse(self.name, own, options, extra, complete=partial(complete_for_machine, training_class=own))

    def start(self, options: Mapping[str, Any]) -> None:
        """Run it. Raises UserError."""
        imported(f"rlhf_kit.stages.{self.name}:start")(options)


SFT = Stage("sft", "trl:SFTConfig")
REWARD = Stage("reward", "rlhf_kit.reward.config:RewardConfig", "rlhf_kit.stages.calibration:CalibrationArguments")
PPO = Stage("ppo", "rlhf_kit.ppo.config:PPOConfig", "rlhf_kit.stages.ppo:PPOArguments")
DPO = Stage("dpo", "rlhf_kit.methods.config:DPOConfig", "rlhf_kit.stages.preference:PreferenceArguments")
KTO = Stage("kto", "rlhf_kit.methods.config:KTOConfig", "rlhf_kit.stages.preference:PreferenceArguments")
RLOO = Stage("rloo", "rlhf_kit.methods.online_config:RLOOConfig", "rlhf_kit.stages.ppo:RewardArguments")
GRPO = Stage("grpo", "rlhf_kit.methods.online_config:GRPOConfig", "rlhf_kit.stages.ppo:RewardArguments")
STAGES = {stage.name: stage for stage in (SFT, REWARD, PPO, DPO, KTO, RLOO, GRPO)}


@dataclass(frozen=True)
class Method:
    """`strength`: the option that says how far a policy may go; `learns_from`: RANKINGS, or PROMPTS, which it answers
    for the reward model to score; `stage`: None where nothing is trained."""

    title: str
    strength: str
    learns_from: str
    stage: Stage | None = None

    @property
    def is_scored(self) -> bool:
        """Whether it learns from the reward model."""
        return self.learns_from == PROMPTS


BEST_OF_N = "best_of_n"
METHODS = {
    "ppo": Method("PPO", "kl_coef", PROMPTS, PPO),
    "dpo": Method("DPO", "beta", RANKINGS, DPO),
    "kto": Method("KTO", "beta", RANKINGS, KTO),
    "rloo": Method("RLOO", "beta", PROMPTS, RLOO),
    "grpo": Method("GRPO", "beta", PROMPTS, GRPO),
    BEST_OF_N: Method("best-of-n", "n", PROMPTS),
}


@dataclass(frozen=True)
class Entry:
    """A method with its strengths, weak or strong in any order, and the options of its stage."""

    name: str
    method: Method
    strengths: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def label(self, strength: float) -> str:
        """As a folder is called, too."""
        return f"{self.method.strength}-{strength:g}"
