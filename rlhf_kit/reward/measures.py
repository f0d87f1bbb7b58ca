"""The losses of ranked lists, and measures; one number per list.

Notation: G prompts ("lists") in a batch, N answers of all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_kit import ops
from rlhf_kit.reward.config import RewardConfig


def list_losses(scores: Tensor, batch: dict[str, Tensor], args: RewardConfig) -> Tensor:
    """Ranking or thumbs loss of each list, as `args` asks. (N,) -> (G,)."""
    if "thumbs" in batch:
        return ops.thumbs_losses(scores, batch["thumbs"], args.label_smoothing_factor)
    groups, ranks = batch["groups"], batch["ranks"]
    if args.loss_type == "plackett_luce":
        return ops.plackett_luce_losses(scores, groups, ranks)
    if args.loss_type == "best_of":
        return ops.best_of_losses(scores, groups, ranks)
    return ops.pairwise_losses(
        scores, groups, ranks, batch["margins"], args.label_smoothing_factor, ties=args.tie_loss == "half"
    )


def centering(scores: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Mean of (s_i + s_j)^2 over a list's pairs; s^2 for thumbs. (N,) -> (G,).

    Equals TRL's term for lists of two. Source: Eisenstein et al. 2023, arXiv:2312.09244, eq. 2.
    """
    if "thumbs" in batch:
        return scores.square()
    first, second = ops.tied_pairs(batch["groups"], torch.zeros_like(batch["ranks"]))  # all pairs
    return ops.mean_per_group((scores[first] + scores[second]).square(), batch["groups"][first])[0]


class Measures(NamedTuple):
    """One number per list, (G,) each."""

    loss: Tensor
    ordered: Tensor  # 1 for a list with a strictly ordered pair, else 0
    accuracy: Tensor  # over strictly ordered pairs, an equal score counting 0.5; 0 where there is none
    margin: Tensor  # mean of s_better - s_worse, raw units; 0 where there is no ordered pair
    count: Tensor  # answers
    mean: Tensor  # of the list's scores
    variance: Tensor  # of them, population

    def stacked(self) -> Tensor:
        """(G, 7), as processes gather it."""
        return torch.stack(self, dim=1)

    @classmethod
    def of(cls, stacked: Tensor) -> Measures:
        """What `stacked` gave."""
        return cls(*stacked.unbind(1))


def list_measures(scores: Tensor, batch: dict[str, Tensor], args: RewardConfig) -> Measures:
    """The figures of each list's scores. (N,) -> (G,) each."""
    groups, losses = batch["groups"], list_losses(scores, batch, args)
    if "thumbs" in batch:
        margin = torch.where(batch["thumbs"], scores, -scores)
        accuracy, ordered = (torch.sign(margin) + 1) / 2, torch.ones_like(margin)
    else:
        better, worse = ops.ordered_pairs(groups, batch["ranks"])
        gaps = scores[better] - scores[worse]
        size = len(losses)
        margin, ordered = ops.mean_per_group(gaps, groups[better], size)
        accuracy, _ = ops.mean_per_group((torch.sign(gaps) + 1) / 2, groups[better], size)
    mean, _ = ops.mean_per_group(scores, groups)
    variance, _ = ops.mean_per_group((scores - mean[groups]).square(), groups)
    count = torch.bincount(groups)
    return Measures(*(x.to(scores.dtype) for x in (losses, ordered, accuracy, margin, count, mean, variance)))


def summarize(measures: Measures) -> dict[str, float]:
    """Means over lists, and mean and population std of all their scores."""
    lists = Measures(*(x.double() for x in measures))
    overall = (lists.count * lists.mean).sum() / lists.count.sum()
    spread = (lists.count * (lists.variance + (lists.mean - overall).square())).sum() / lists.count.sum()
    return {
        "loss": lists.loss.mean().item(),
        "accuracy": (lists.accuracy.sum() / lists.ordered.sum()).item(),
        "margin": (lists.margin.sum() / lists.ordered.sum()).item(),
        "mean_reward": overall.item(),
        "std_reward": spread.sqrt().item(),
    }
