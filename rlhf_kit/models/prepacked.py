"""Weights in oneDNN's own layout for as long as nothing changes them: a rollout samples on them.

On a CPU every product in bf16 first brings its weights into that layout (and autocast casts them before), which for
the few rows of one sampled token takes longer than the product. The sums are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from peft.tuners import lora
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf_kit.models.precision import is_cast


@contextmanager
def prepacked(model: nn.Module, merge: bool = False) -> Iterator[None]:
    """Within, linear layers that compute in bf16 on a CPU, without gradients, do so with weights packed at first use.

    Every other call is the layer's own: float32, a GPU, gradients, subclasses of `nn.Linear` and of GPT-2's `Conv1D`.
    The weights must not change within. A context in a context packs what is left.

    Args:
        merge: a layer with LoRA multiplies once, by W + sum(scale * B A), added in float32 and rounded once. That is
            as near to float32 as the three products of training, and not the same: to sample with, not for log-probs
            that are compared with those of training.
    """
    modules = [*model.modules()] if _is_supported() else []
    packs = [_Packed(module) for module in modules if _is_plain(module) and not _is_packed(module)]
    packs += [_Merged(module) for module in modules if merge and _is_mergeable(module)]
    try:
        for pack in packs:
            pack.module.forward = pack
        yield
    finally:
        for pack in packs:
            pack.restore()


@cache
def _is_supported() -> bool:
    """Where PyTorch itself multiplies bf16 by oneDNN, and that was tried."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


class _Packed:
    """Stands in for the `forward` of a linear layer."""

    def __init__(self, module: nn.Module):
        self.module, self.before = module, vars(module).get("forward")
        self.forward, self.linear = module.forward, module
        self.weights: tuple[Tensor, Tensor | None] | None = None

    def __call__(self, x: Tensor, *args, **kwargs) -> Tensor:
        if args or kwargs or not self._applies(x):
            return self.forward(x, *args, **kwargs)
        if self.weights is None:
            bias = None if self.linear.bias is None else self.linear.bias.detach().to(torch.bfloat16)
            weight = self.weight().to(torch.bfloat16).contiguous()
            self.weights = torch.ops.mkldnn._reorder_linear_weight(weight), bias
        return torch.ops.mkldnn._linear_pointwise(x.to(torch.bfloat16), *self.weights, "none", [], "")

    def weight(self) -> Tensor:
        """(outputs, inputs)"""
        weight = self.linear.weight.detach()
        return weight.t() if isinstance(self.linear, Conv1D) else weight

    def _applies(self, x: Tensor) -> bool:
        """Whether the layer's own forward would compute this in bf16, and no gradient is asked for."""
        if torch.is_grad_enabled():
            return False
        if torch.is_autocast_enabled("cpu"):
            return torch.get_autocast_dtype("cpu") == torch.bfloat16 and x.dtype in (torch.float32, torch.bfloat16)
        return x.dtype == self.linear.weight.dtype == torch.bfloat16

    def restore(self) -> None:
        vars(self.module).pop("forward", None)
        if self.before is not None:
            self.module.forward = self.before


class _Merged(_Packed):
    """Stands in for the `forward` of a linear layer with LoRA, while its adapters are as they were."""

    def __init__(self, module: lora.Linear):
        super().__init__(module)
        self.linear, self.adapters = module.get_base_layer(), list(module.active_adapters)

    def weight(self) -> Tensor:
        layer, weight = self.module, super().weight().float()
        with torch.autocast("cpu", enabled=False):
            for name in self.adapters:
                if name in layer.lora_A:
                    a, b = layer.lora_A[name].weight.detach().float(), layer.lora_B[name].weight.detach().float()
                    weight = torch.addmm(weight, b, a, alpha=layer.scaling[name])
        return weight

    def _applies(self, x: Tensor) -> bool:
        layer = self.module
        is_as_it_was = not layer.disable_adapters and not layer.merged and layer.active_adapters == self.adapters
        return is_as_it_was and super()._applies(x)


def _is_packed(module: nn.Module) -> bool:
    return isinstance(vars(module).get("forward"), _Packed)


def _is_plain(module: nn.Module) -> bool:
    """A linear layer that does what its class does, with dense weights that lie here."""
    if type(module) not in (nn.Linear, Conv1D):
        return False
    if "forward" in vars(module) and not is_cast(module) and not _is_packed(module):
        return False
    weight = module._parameters.get("weight")  # not one computed by a parametrization, a quantizer's or a shard
    is_dense = type(weight) is nn.Parameter and weight.layout == torch.strided and weight.ndim == 2
    return is_dense and weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)


def _is_mergeable(module: nn.Module) -> bool:
    """LoRA as in the paper, on a plain linear layer that nobody watches: no DoRA, no bias of its own, no dropout."""
    if type(module) is not lora.Linear or "forward" in vars(module) or module.training:
        return False
    base = module.get_base_layer()
    if not _is_plain(base) or base._forward_hooks or base._forward_pre_hooks:
        return False
    return not any(module.lora_variant.get(name) or module.lora_bias.get(name) for name in module.active_adapters)
