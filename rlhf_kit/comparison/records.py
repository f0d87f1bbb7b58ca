"""What the parts of a comparison hand to one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COMMAND = "compare-methods"
START = "start"  # the policy before any method, as a name in the table
WORLD = "world"  # the embedded world, as the source of the truth
TEMPERATURE = 0.7  # as recipes/world/ppo.yaml has it; Ziegler et al. 2019 sampled so too
LONGEST = 40  # tokens of an answer of the world


@dataclass(frozen=True)
class Place:
    """Where in the table a measurement stands: a method's name and strength, or START and None; the seed."""

    entry: str
    strength: float | None
    seed: int


@dataclass(frozen=True)
class Measurement:
    """A policy of the table: its answers as `work.measure` gives them, and what its training took (None: nothing was
    trained)."""

    place: Place
    measured: Mapping[str, Any]
    trained: Mapping[str, Any] | None
