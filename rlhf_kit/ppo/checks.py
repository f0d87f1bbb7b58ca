"""Numbers that are none: which tensor was the first to hold a NaN or an infinity."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kit.errors import UserError

ADVICE = "The last checkpoint is untouched: go on from it with a lower learning rate, or in float32."


class Watch:
    """Remembers, without waiting for the device, whether each named tensor was finite; tells at `check`.

    Names come in the order of the computation, so that the first bad one is where it began.
    """

    def __init__(self):
        self.fine: dict[str, Tensor] = {}

    def look(self, name: str, x: Tensor, mask: Tensor | None = None) -> None:
        fine = (x if mask is None else torch.where(mask, x, 0.0)).detach().isfinite().all()
        self.fine[name] = self.fine[name] & fine if name in self.fine else fine

    def check(self, when: str) -> None:
        """Raise for the first tensor that was not finite since the last check. Raises UserError."""
        names = list(self.fine)
        told = torch.stack(list(self.fine.values())).tolist() if names else []
        self.fine.clear()
        if not all(told):
            raise UserError(f"{names[told.index(False)]} became NaN or infinite {when}. {ADVICE}")
