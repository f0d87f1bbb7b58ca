"""A loss that is a mean over lists of answers, each with its weight, over all that an optimizer step reads."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class MeanOverLists:
    """Stands before a trainer whose batches have `weights` (G,), one a list, and whose loss is `mean_over_lists`."""

    # The loss is already divided by all the lists of the optimizer step, those of other processes included.
    loss_is_scaled_for_ga = True

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | None]:
        """The micro-batches of an optimizer step, and the weight of their lists over all processes, which divides
        the loss."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        weight = torch.stack([batch["weights"].sum() for batch in batches]).sum().to(device)
        return batches, self.accelerator.reduce(weight, "sum")

    def mean_over_lists(self, losses: Tensor, weights: Tensor, num_items_in_batch: Tensor | None) -> Tensor:
        """Weighted mean of the lists' losses (G,); their share in a whole step of `num_items_in_batch`."""
        loss = (weights * losses).sum()
        if num_items_in_batch is None:
            return loss / weights.sum()
        # processes average their gradients, where the mean over all lists needs their sum
        return loss / num_items_in_batch * self.accelerator.num_processes
