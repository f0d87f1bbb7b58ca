"""Muon for the matrices of the hidden layers, AdamW for all else, as one optimizer for `Trainer`.

Muon: Jordan et al. 2024 (kellerjordan.github.io/posts/muon), torch's own; updates are scaled to AdamW's size
(Liu et al. 2025, arXiv:2502.16982, section 2.2), so that one learning-rate schedule and weight decay serve both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel, TrainingArguments

from rlhf_kit.errors import UserError


class Together(Optimizer):
    """Several optimizers, each of weights of its own, that step as one.

    `param_groups` are theirs, so a learning-rate scheduler moves them all.
    """

    def __init__(self, parts: Sequence[Optimizer]):
        weights = [weight for part in parts for group in part.param_groups for weight in group["params"]]
        super().__init__(weights, {"lr": parts[0].defaults["lr"]})  # the rate that schedules with a floor divide by
        self.parts = list(parts)
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "parts" not in state_dict:
            raise UserError(
                "The checkpoint was made without --muon_learning_rate. Leave it out, or start over with another "
                "--output_dir."
            )
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def muon_with_adamw(model: PreTrainedModel, args: TrainingArguments, muon_learning_rate: float) -> Together:
    """Muon at `muon_learning_rate` for the matrices of the hidden layers; `args` holds AdamW's settings."""
    embeddings = {id(w) for module in model.modules() if isinstance(module, nn.Embedding) for w in module.parameters()}
    hidden = [w for w in model.base_model.parameters() if w.ndim == 2 and w.requires_grad and id(w) not in embeddings]
    chosen = {id(weight) for weight in hidden}
    others = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in chosen]
    adamw = AdamW(
        [
            {"params": [w for w in others if w.ndim > 1], "weight_decay": args.weight_decay},
            {"params": [w for w in others if w.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )
    muon = torch.optim.Muon(
        hidden, lr=muon_learning_rate, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return Together([adamw, muon])
