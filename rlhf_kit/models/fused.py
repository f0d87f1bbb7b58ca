"""Activations that are several operations where one does."""

from __future__ import annotations

from torch import nn
from transformers.activations import NewGELUActivation


def fuse_activations(model: nn.Module) -> None:
    """GPT-2's `gelu_new` is five operations, each read and written in turn; PyTorch has the same function as one.

    The model's config, and so what is saved, keeps its name.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
