"""Rows of different lengths as one long row: all layers compute on real tokens alone, attention on padded rows.

It is transformers' own forward: a model whose attention and masks come from its registries takes `packed_sdpa` or
`packed_eager` for its attention. With `packed(lengths)` around a forward of one long row (1, N), the mask of each kind
of layer (full, sliding, chunked) is made for rows (B, T), and attention pads what it is given, computes, and takes the
padding off. Other forwards (a cache, padded rows) are those of the attention that was there before. Which models
compute the same so is tried by `why_not_packed`.

Notation: B rows, N tokens of all of them, T tokens of the longest; H heads of D.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlhf_kit import ops

PREFIX, BASES = "packed_", ("sdpa", "eager")  # attention that is packed; flash attention needs rows of its own kind
SHORT = 256  # tokens of a row up to which its probabilities (T, T) are kept for the backward
_reading: ContextVar[Tensor | None] = ContextVar("rows", default=None)  # (B, T), True on tokens


class Packing:
    """Where the tokens of a long row stand in rows (B, T), padded on the right."""

    def __init__(self, mask: Tensor):
        self.mask, self.width = mask, mask.shape[1]  # (B, T), True on tokens
        self.places = mask.flatten().nonzero().squeeze(1)  # (N,) in B x T
        self._biases: dict[Any, Tensor] = {}

    @classmethod
    def of(cls, mask: Tensor, query: Tensor) -> Packing | None:
        """That of a mask (B, 1, T, T) which is not of the rows of `query` (1, H, N, D); None where it is.

        A token sees itself, padding is seen by nobody: the diagonal tells them apart. Found once for all layers; what
        a checkpoint of activations hands on has lost it.
        """
        if mask is None or (len(mask), mask.shape[-2]) == (len(query), query.shape[2]):
            return None
        packing = getattr(mask, "packing", None)
        if packing is None:
            diagonal = mask[:, 0].diagonal(dim1=1, dim2=2)
            packing = mask.packing = cls(diagonal if mask.dtype == torch.bool else diagonal == 0)
        return packing

    def pad(self, x: Tensor) -> Tensor:
        """(1, H, N, D) -> (B, H, T, D)."""
        rows, heads, size = len(self.mask), x.shape[1], x.shape[3]
        flat = x[0].transpose(0, 1).reshape(-1, heads * size)
        padded = x.new_zeros(rows * self.width, heads * size).index_copy(0, self.places, flat)
        return padded.view(rows, self.width, heads, size).transpose(1, 2)

    def unpad(self, x: Tensor) -> Tensor:
        """(B, T, H, D) -> (1, N, H, D)."""
        return x.flatten(0, 1).index_select(0, self.places)[None]

    def bias(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """What is added to the products of queries and keys, made once for all layers of a kind. -> (B, 1, T, T)."""
        key = (id(mask), dtype)
        if key not in self._biases:
            self._biases[key] = _added(mask, dtype)
        return self._biases[key]


@contextmanager
def packed(lengths: Tensor) -> Iterator[None]:
    """Within, a forward of one long row reads rows of these lengths (B,) apart from one another."""
    before = _reading.set(ops.length_mask(lengths, int(lengths.max())))
    try:
        yield
    finally:
        _reading.reset(before)


def rows_read() -> Tensor | None:
    """The rows (B, T) that one long row stands for within `packed`, True on tokens; None elsewhere."""
    return _reading.get()


def _mask(base: str) -> Callable[..., Tensor | None]:
    def mask(batch_size: int, q_length: int, kv_length: int, *args: Any, **options: Any) -> Tensor | None:
        rows, make = rows_read(), ALL_MASK_ATTENTION_FUNCTIONS[base]
        if rows is None:
            return make(batch_size, q_length, kv_length, *args, **options)
        options |= {"attention_mask": rows, "allow_is_causal_skip": False, "q_offset": 0, "kv_offset": 0}
        return make(*rows.shape, rows.shape[1], **options)

    return mask


def _attention(base: str) -> Callable[..., tuple[Tensor, None]]:
    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any):
        packing = Packing.of(mask, query)
        if packing is None:
            return _base(base, module)(module, query, key, value, mask, **options)
        query, key, value = map(packing.pad, (query, key, value))
        if _is_short(query, mask, options):
            bias, dropout = packing.bias(mask, query.dtype), options.get("dropout") or 0.0
            output = short_attention(query, key, value, bias, options.get("scaling"), dropout)
        else:
            output, _ = _base(base, module)(module, query, key, value, mask, **options)
        return packing.unpad(output), None

    return attend


def _base(name: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """What attends where nothing is packed: a model's own eager attention is a function of its module's file."""
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


def _is_short(query: Tensor, mask: Tensor, options: dict[str, Any]) -> bool:
    """Whether `short_attention` computes what `sdpa` does, faster: on a CPU the backward of PyTorch's is slow where
    rows are short (bf16, 4 rows of 72 tokens: 15.7 ms against 2.0), and with dropout it keeps as much and more."""
    more = any(options.get(name) is not None for name in ("softcap", "position_bias"))
    plain = not more and mask.dtype == torch.bool and query.device.type == "cpu"
    return plain and (query.shape[2] <= SHORT if not options.get("dropout") else options["dropout"] < 1)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a query sees a key, the least number where it does not."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def mask_for(model: PreTrainedModel, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask (B, 1, queries, keys) of bools as the model's attention takes it: eager adds what it is given."""
    return _added(mask, dtype) if attention_of(model) == "eager" else mask


def attention_of(model: PreTrainedModel) -> str:
    """What attends in `model` where nothing is packed: sdpa, eager, ..."""
    return model.config._attn_implementation.removeprefix(PREFIX)


def is_packed(model: PreTrainedModel) -> bool:
    return model.config._attn_implementation.startswith(PREFIX)


def take_packed(model: nn.Module) -> bool:
    """Give a model the attention that can read one long row; False where it has none that can be set."""
    inner = _inner(model)
    base = inner.config._attn_implementation
    if base.removeprefix(PREFIX) not in BASES or not inner._can_set_attn_implementation():
        return base.startswith(PREFIX)
    if not base.startswith(PREFIX):
        inner.set_attn_implementation(PREFIX + base)
    return is_packed(inner)


def take_padded(model: nn.Module) -> None:
    """Give a model the attention that it had."""
    inner = _inner(model)
    base = inner.config._attn_implementation
    if base.startswith(PREFIX):
        inner.set_attn_implementation(base.removeprefix(PREFIX))


def _inner(model: nn.Module) -> PreTrainedModel:
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    return model.get_base_model() if isinstance(model, PeftModel) else model


# --- attention of short rows ----------------------------------------------------------------------------------------


def short_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float | None, dropout: float = 0.0
) -> Tensor:
    """Softmax attention by batched products. (B, H, T, D) and twice (B, h, T, D), (B, 1, T, T) -> (B, T, H, D)."""
    rows, heads, width, size = query.shape
    groups = heads // key.shape[1]
    key, value = (x if groups == 1 else x.repeat_interleave(groups, 1) for x in (key, value))
    flat = [x.reshape(rows * heads, width, -1) for x in (query, key, value)]
    bias = bias.expand(rows, heads, width, width).reshape(rows * heads, width, width)
    output = _ShortAttention.apply(*flat, bias, size**-0.5 if scaling is None else scaling, dropout)
    return output.view(rows, heads, width, -1).transpose(1, 2)


class _ShortAttention(torch.autograd.Function):
    """Keeps the probabilities, which are few, and so needs no second softmax."""

    @staticmethod
    def forward(
        ctx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        shares = torch.softmax(torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scaling), -1)  # (G, T, T)
        kept, ctx.rescaling = _drawn(shares, dropout) if dropout else (None, 1.0)
        ctx.save_for_backward(query, key, value, shares, kept)
        ctx.scaling = scaling
        return torch.bmm(_dropped(shares, kept), value if kept is None else value * ctx.rescaling)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        query, key, value, shares, kept = ctx.saved_tensors
        gradient = gradient if kept is None else gradient * ctx.rescaling
        products = _dropped(torch.bmm(gradient, value.transpose(1, 2)), kept)
        products = torch._softmax_backward_data(products, shares, -1, shares.dtype).mul_(ctx.scaling)
        return (
            torch.bmm(products, key), torch.bmm(products.transpose(1, 2), query),
            torch.bmm(_dropped(shares, kept).transpose(1, 2), gradient), None, None, None,
        )  # fmt: skip


def _dropped(x: Tensor, kept: Tensor | None) -> Tensor:
    return x if kept is None else x * kept


def _drawn(x: Tensor, dropout: float) -> tuple[Tensor, float]:
    """1 where dropout keeps a number and 0 where not, and what it multiplies those that are kept by.

    16 bits a number: PyTorch's own draws take longer than the products that they are for. The rate is rounded to
    1 / 65,536.
    """
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    below = round(dropout * 2**16)
    kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= below - 2**15
    return kept.view(torch.uint8), 2**16 / (2**16 - below)


for _name in BASES:
    AttentionInterface.register(PREFIX + _name, _attention(_name))
    AttentionMaskInterface.register(PREFIX + _name, _mask(_name))
