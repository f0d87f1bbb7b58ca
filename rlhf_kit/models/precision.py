"""Weights in the precision that they are multiplied in, cast no more often than they change.

Autocast casts a weight anew in every forward. What is frozen (a reference, a reward model, the base under LoRA) is
cast once here instead, and what is trained once an optimizer step: the numbers are the same.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def cast_frozen(model: nn.Module, dtype: torch.dtype, keep: bool) -> None:
    """Multiply by the frozen float32 weights of all linear layers (`nn.Linear`, GPT-2's `Conv1D`) in `dtype`.

    Embeddings, norms and whatever is trained stay as they are.

    Args:
        keep: leave the float32 weights in place, for saving and merging, and compute with a cast copy beside them.
            Otherwise the cast weights take their place, and a head tied to the embedding gets its own.
    """
    adapters = {module.get_base_layer(): module for module in model.modules() if isinstance(module, BaseTunerLayer)}
    for module in model.modules():
        if not isinstance(module, nn.Linear | Conv1D) or module.weight.requires_grad:
            continue
        if module.weight.dtype != torch.float32:
            continue
        weight = module.weight.detach().to(dtype)
        bias = None if module.bias is None else module.bias.detach().to(dtype)
        if keep:
            multiply = _conv1d if isinstance(module, Conv1D) else F.linear
            module.forward = partial(_forward, module, adapters.get(module), multiply, weight, bias)
        else:
            module.weight = nn.Parameter(weight, requires_grad=False)
            if bias is not None:
                module.bias = nn.Parameter(bias, requires_grad=False)


def is_cast(module: nn.Module) -> bool:
    """Whether the `forward` that `module` has of its own is the cast copy of `cast_frozen`."""
    return getattr(vars(module).get("forward"), "func", None) is _forward


def _forward(
    module: nn.Module, adapter: BaseTunerLayer | None, multiply, weight: Tensor, bias: Tensor | None, x: Tensor
) -> Tensor:
    if adapter is not None and adapter.merged:  # into the weights of `module`, of which `weight` is the copy before
        return type(module).forward(module, x)
    return multiply(x.to(weight.dtype), weight, bias)


def _conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GPT-2 keeps its weights transposed. (..., in), (in, out) -> (..., out)."""
    return torch.addmm(bias, x.view(-1, x.shape[-1]), weight).view(*x.shape[:-1], weight.shape[1])


class HeldCasts:
    """Keeps what autocast has cast from one forward to the next, until `release`.

    Autocast forgets its casts when the outermost of its contexts ends; `hold` counts as one more around them. The
    weights must not change while it holds: release before every optimizer step.
    """

    def __init__(self):
        self.held = False

    def hold(self) -> None:
        if not self.held:
            torch.autocast_increment_nesting()
            self.held = True

    def release(self) -> None:
        if self.held:
            self.held = False
            if torch.autocast_decrement_nesting() == 0:
                torch.clear_autocast_cache()
