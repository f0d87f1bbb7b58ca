"""Several operations where one does: in activations, and in the gradient of an embedding that is the LM head too."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from transformers.activations import NewGELUActivation


def fuse(model: nn.Module) -> None:
    """The same functions, their numbers and gradients up to the order of sums, in less time on a CPU.

    The model's config, and so what is saved, stays as it is.
    """
    heads = {id(module.weight) for module in model.modules() if type(module) is nn.Linear}
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):  # five operations, each read and written in turn
                setattr(module, name, nn.GELU(approximate="tanh"))
        if type(module) is nn.Embedding and id(module.weight) in heads and _is_plain(module):
            module.forward = partial(_embed, module)


def _is_plain(embedding: nn.Embedding) -> bool:
    options = (embedding.padding_idx, embedding.max_norm, embedding.scale_grad_by_freq, embedding.sparse)
    return "forward" not in vars(embedding) and options == (None, None, False, False)


def _embed(embedding: nn.Embedding, ids: Tensor) -> Tensor:
    weight = embedding.weight
    if weight.device.type != "cpu" or not torch.is_grad_enabled() or not weight.requires_grad:
        return type(embedding).forward(embedding, ids)
    return _Embedded.apply(weight, ids)


class _Embedded(torch.autograd.Function):
    """Its gradient is of the rows used alone, to be added to the head's: PyTorch's own is all rows (V, H), nearly all
    of them zeros, filled and added each time."""

    @staticmethod
    def forward(ctx, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape = weight.shape
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (ids,) = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        return torch.sparse_coo_tensor(ids.reshape(1, -1), rows, ctx.shape, check_invariants=False), None
