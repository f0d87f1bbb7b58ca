"""Attention of one token to a cache in float32, where the rest of the model computes in bf16 on a CPU.

PyTorch's attention of one query in bf16 takes two to five times as long there as in float32: it converts all that is
cached for every token. So the cache keeps float32 (the bf16 numbers, exactly), and attention is computed in it:
while a model is sampled from, its attention is `wide_sdpa`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlhf_kit.models.forward import unwrapped
from rlhf_kit.models.packed import PREFIX

BASE, WIDE = "sdpa", "wide_sdpa"


@contextmanager
def wide_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within, `model` has attention that computes in float32 on keys and values in it, where it computes in bf16."""
    config, applies = unwrapped(model).config.get_text_config(), _in_bf16_on_cpu(model)
    own = config._attn_implementation
    if applies:
        config._attn_implementation = WIDE
    try:
        yield
    finally:
        if applies:
            config._attn_implementation = own


def is_wide(model: PreTrainedModel) -> bool:
    """Whether `model` has it now, and its cache is to be in float32."""
    return unwrapped(model).config.get_text_config()._attn_implementation == WIDE


def _in_bf16_on_cpu(model: PreTrainedModel) -> bool:
    """Whether `model` now computes so, by an attention in whose place another can be."""
    inner = unwrapped(model)
    if inner.device.type != "cpu" or not inner.is_backend_compatible():
        return False
    if str(inner.config.get_text_config()._attn_implementation).removeprefix(PREFIX) != BASE:
        return False
    is_cast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return is_cast or inner.dtype == torch.bfloat16


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any):
    attend = ALL_ATTENTION_FUNCTIONS[BASE]
    if key.dtype != torch.float32 or value.dtype != torch.float32:  # a sliding window's layers are transformers' own
        return attend(module, query, key, value, mask, **options)
    if mask is not None and mask.is_floating_point():
        mask = mask.float()
    with torch.autocast("cpu", enabled=False):
        output, weights = attend(module, query.float(), key, value, mask, **options)
    return output.to(torch.bfloat16), weights


AttentionInterface.register(WIDE, _attend)
AttentionMaskInterface.register(WIDE, ALL_MASK_ATTENTION_FUNCTIONS[BASE])
