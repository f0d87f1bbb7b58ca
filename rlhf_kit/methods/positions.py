"""Positions that follow the mask, so that left padding moves nothing: TRL hands its rows over without them.

GPT-2 and all others that learn an embedding for each position would read a padded prompt as one that begins later.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rlhf_kit.models.forward import taken


def positions_of(attention_mask: Tensor) -> Tensor:
    """Of each token among those of its row that are no padding; 0 before them. (B, T) -> (B, T)."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def follow_mask(model: nn.Module) -> None:
    """From now on a call of `model` with a mask and without positions gets those that follow the mask.

    `generate`, which gives them itself, is left alone, and so is a model whose forward takes none.
    """
    model.register_forward_pre_hook(_with_positions, with_kwargs=True)


def _with_positions(model: nn.Module, args: tuple, inputs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
    if mask is None or ids is None or mask.shape != ids.shape or inputs.get("position_ids") is not None:
        return None
    return args, inputs | taken(model, position_ids=positions_of(mask))
