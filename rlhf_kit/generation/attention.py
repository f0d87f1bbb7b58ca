"""Attention of one token to a cache in float32, where the rest of the model computes in bf16 on a CPU.

PyTorch's attention of one query in bf16 takes two to five times as long there as in float32: it converts all that is
cached for every token. So the cache keeps float32 (the bf16 numbers, exactly), and attention is computed in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlhf_kit.models.forward import unwrapped

_is_wide: ContextVar[bool] = ContextVar("is_wide", default=False)


def in_bf16_on_cpu(model: PreTrainedModel) -> bool:
    """Whether `model` now computes so, with an attention that `wide_attention` reaches."""
    inner = unwrapped(model)
    if inner.device.type != "cpu" or not inner.is_backend_compatible():
        return False
    if not str(inner.config.get_text_config()._attn_implementation).endswith("sdpa"):
        return False
    is_cast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return is_cast or inner.dtype == torch.bfloat16


@contextmanager
def wide_attention(applies: bool) -> Iterator[None]:
    """Within, if it `applies`, attention to keys and values in float32 is computed in it, under autocast too."""
    before = _is_wide.set(applies)
    try:
        yield
    finally:
        _is_wide.reset(before)


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any):
    if not _is_wide.get() or key.dtype != torch.float32 or value.dtype != torch.float32:
        return _sdpa(module, query, key, value, mask, **options)
    if mask is not None and mask.is_floating_point():
        mask = mask.float()
    with torch.autocast("cpu", enabled=False):
        output, weights = _sdpa(module, query.float(), key, value, mask, **options)
    return output.to(torch.bfloat16), weights


_sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
AttentionInterface.register("sdpa", _attend)  # its own elsewhere; no model's config names another attention
