"""A moving average of the policy (InstructGPT, appendix C.4), kept beside it and saved as a model of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class MovingAverage:
    """average = decay * average + (1 - decay) * policy after every optimizer step, of what is trained, in float32."""

    def __init__(self, policy: nn.Module, decay: float):
        self.policy, self.decay = policy, decay
        self.average = {name: p.detach().float().clone() for name, p in self._trained()}

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.policy.named_parameters() if p.requires_grad)

    @torch.no_grad()
    def update(self) -> None:
        for name, parameter in self._trained():
            self.average[name].lerp_(parameter.float(), 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the policy is its average."""
        kept = {name: p.detach().clone() for name, p in self._trained()}
        self._set(self.average)
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, weights: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._trained():
            parameter.copy_(weights[name])

    def load(self, average: dict[str, torch.Tensor]) -> None:
        """Go on from a saved average."""
        for name, weight in self.average.items():
            weight.copy_(average[name])
