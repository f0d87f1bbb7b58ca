"""What a forward leaves in memory for its backward, and in its cache: counted by autograd's own hooks.

The very model is run on tensors that have shapes and no content, so that heads that share keys, gated layers, dropout,
adapters and autocast's copies count as they are, whatever the architecture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlhf_kit.models.forward import taken, unwrapped
from rlhf_kit.models.packed import SHORT, short_attention

PLANNED = {True: "planned_packed", False: "planned_fused"}  # by whether rows are packed on a CPU


@dataclass(frozen=True)
class Kept:
    """Bytes of each tensor, weights left out; `stream`: of what one layer hands the next."""

    sizes: tuple[int, ...]
    stream: int

    @property
    def total(self) -> int:
        return sum(self.sizes)

    @property
    def largest(self) -> int:
        return max(self.sizes, default=0)

    def extended(self, three: Kept, rows: int) -> Kept:
        """Of `rows` rows, as this is of two and `three` of three: what grows grows by the row."""
        pairs = zip((*self.sizes, self.stream), (*three.sizes, three.stream), strict=True)
        *sizes, stream = (two + (more - two) * (rows - 2) for two, more in pairs)
        return Kept(tuple(sizes), stream)

    def recomputed(self, layers: int) -> int:
        """In all with activation checkpointing: the input of each layer, and one layer at a time in full."""
        return min(self.total, layers * self.stream + self.total // layers)


@contextmanager
def without_content(*models: nn.Module) -> Iterator[None]:
    """Within, tensors that are made have no content; and from then on those of `models`, which may be on "meta"."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        for model in models:
            _empty(model)
        yield


def _empty(model: nn.Module) -> None:
    """Tensors of a CPU in place of those of `model`, shared where they were."""
    made: dict[int, Tensor] = {}
    held: list[Tensor] = []  # so that no number is given away again
    tables = [table for module in model.modules() for table in (module._parameters, module._buffers)]
    for table in tables:
        for name, tensor in table.items():
            if tensor is not None and id(tensor) not in made:
                empty = torch.zeros(tensor.shape, dtype=tensor.dtype)
                is_weight = isinstance(tensor, nn.Parameter)
                made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
                held.append(tensor)
            table[name] = tensor if tensor is None else made[id(tensor)]


def kept_by_forward(trunk: nn.Module, rows: int, width: int, half: bool) -> Kept:
    """Of a training forward of `trunk` over `rows` rows of `width` tokens."""
    weights = {parameter.untyped_storage()._cdata for parameter in trunk.parameters()}
    saved: dict[int, int] = {}
    held: list[Tensor] = []  # so that no storage's number is given away again

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in saved:
            saved[storage._cdata] = storage.nbytes()
            held.append(tensor)
        return tensor

    trunk.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = _forward(trunk, rows, width, half, use_cache=False)
    stream = next(iter(output.values())).nbytes
    return Kept(tuple(saved.values()), stream)


def cached_values(trunk: nn.Module, width: int = 16) -> float:
    """Keys and values that a token leaves in the cache of all layers, in numbers; 0 for a model without one."""
    with torch.no_grad():
        output = _forward(trunk, 1, width, False, use_cache=True)
    cache = output.get("past_key_values")
    layers = getattr(cache, "layers", ())
    return sum(x.numel() for layer in layers for x in (layer.keys, layer.values) if isinstance(x, Tensor)) / width


def _forward(trunk: nn.Module, rows: int, width: int, half: bool, **options: Any) -> Any:
    ids = torch.zeros(rows, width, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext():
        return trunk(input_ids=ids, **taken(trunk, **options))


def trunk_of(model: nn.Module) -> nn.Module:
    """A model without its head."""
    return unwrapped(model).base_model


# --- attention as a run's has it ------------------------------------------------------------------------------------


def _fused(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any):
    """A GPU's: nothing of T x T stays, with dropout or without."""
    options["dropout"] = 0.0
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, None, **options)


def _packed(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any):
    """A CPU's, of rows side by side (`models.packed`): the probabilities of short rows stay, with dropout all."""
    dropout = options.get("dropout") or 0.0
    if not dropout and query.shape[2] > SHORT:
        return _fused(module, query, key, value, None, **options)
    bias = query.new_zeros(len(query), 1, query.shape[2], key.shape[2])
    return short_attention(query, key, value, bias, options.get("scaling"), dropout), None


for _packs, _name in PLANNED.items():
    AttentionInterface.register(_name, _packed if _packs else _fused)
    AttentionMaskInterface.register(_name, lambda *args, **options: None)
