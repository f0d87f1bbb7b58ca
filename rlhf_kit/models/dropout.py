"""Turn dropout off: with it, the policy that is scored is not the policy that sampled, and the ratio is not 1."""

from __future__ import annotations

from torch import nn

# Rates that attention layers keep as plain numbers instead of nn.Dropout modules.
RATE_NAMES = ("attention_dropout", "attn_dropout", "attn_pdrop", "dropout", "dropout_p", "hidden_dropout")


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout rate in `model` to 0, those of adapters included."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in RATE_NAMES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
