"""What is known of the models of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PretrainedConfig

from rlhf_kit.planning.kept import Kept
from rlhf_kit.stages.arguments import Settings


@dataclass(frozen=True)
class Part:
    """A model of a run. `body`: parameters that every token is multiplied by; `head`: those of the LM head, which only
    predicted tokens are. `block`: bytes of its largest layer, which sharding gathers whole."""

    name: str
    parameters: int
    trained: int
    weight_bytes: int
    trained_bytes: int
    body: int
    head: int
    block: int = 0
    cast: int = 0  # bytes more with frozen layers in bf16 in place of float32 (`precision.cast_frozen`); fewer, mostly
    copied: int = 0  # bytes more with a bf16 copy beside them


@dataclass(frozen=True)
class Shape:
    """What of a configuration the arithmetic needs."""

    layers: int
    hidden: int
    vocabulary: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> Shape:
        config = config.get_text_config()
        return cls(config.num_hidden_layers, config.hidden_size, config.vocab_size)


@dataclass
class Roles:
    """`policy`: what is trained; `value`: a value trunk of its own; `reference`, `rewards`: frozen.

    `kept(rows, width)`: of a micro-batch, all trained trunks together.
    """

    shape: Shape
    policy: Part
    value: Part | None
    reference: Part | None
    rewards: list[Part]
    cached: float  # numbers a token
    kept: Callable[[int, int], Kept]

    @property
    def trained(self) -> list[Part]:
        return [part for part in (self.policy, self.value) if part is not None]

    @property
    def frozen(self) -> list[Part]:
        return [part for part in (self.reference, *self.rewards) if part is not None]


def half_of(settings: Settings) -> bool:
    """Whether autocast computes in 16 bit."""
    return bool(settings.training.bf16 or settings.training.fp16)
