"""Numbers that are not finite: which tensor was the first to contain a NaN or an infinity."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlhf_kit.errors import NotFiniteError
from rlhf_kit.ops import first_not_finite

ADVICE = "The last checkpoint is untouched: resume from it with a lower learning rate, or in float32."


class Watch:
    """Remembers, without waiting for the device, whether each named tensor was finite; tells at `check`.

    Names come in the order of the computation, so that the first bad one is where it began.
    """

    def __init__(self):
        self.fine: dict[str, Tensor] = {}

    def look(self, name: str, x: Tensor, mask: Tensor | None = None) -> None:
        fine = (x if mask is None else torch.where(mask, x, 0.0)).detach().isfinite().all()
        self.fine[name] = self.fine[name] & fine if name in self.fine else fine

    def check(self, when: str, model: nn.Module | None = None) -> None:
        """Raise for the first tensor that was not finite since the last check.

        `model`: what computed it; weights of its own that are not finite are named too. Raises NotFiniteError.
        """
        names = list(self.fine)
        flags = torch.stack(list(self.fine.values())).tolist() if names else []
        self.fine.clear()
        if not all(flags):
            weight = first_not_finite(model.named_parameters()) if model is not None else None
            cause = f" (so are the weights {weight})" if weight else ""
            raise NotFiniteError(f"{names[flags.index(False)]} became NaN or infinite {when}{cause}. {ADVICE}")
