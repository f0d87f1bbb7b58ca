"""Turn dropout off: with it, the policy that is scored is not the policy that sampled, and the ratio is not 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout rate in `model` to 0, those of adapters included."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Rates kept as plain numbers: Llama's attention_dropout, OPT's activation_dropout and layerdrop.
        for name in [name for name, rate in vars(module).items() if "drop" in name and isinstance(rate, float)]:
            setattr(module, name, 0.0)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Within, `model` draws no dropout; then it is in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
