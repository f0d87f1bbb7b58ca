"""Losses and measures, one number a list.

Notation: G prompts ("lists") in a batch, N answers of all of them.
"""

from __future__ import annotations

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


def list_measures(scores: Tensor, batch: dict[str, Tensor], args: RewardConfig) -> Tensor:
    """Columns: loss, ordered (1 for a list with a strictly ordered pair, else 0), accuracy and margin (0 where not
    ordered), and the count, mean and population variance of the list's scores. (N,) -> (G, 7).

    Accuracy is over strictly ordered pairs, an equal score counting 0.5; margin is s_better - s_worse in raw units.
    """
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
    return torch.stack([x.to(scores.dtype) for x in (losses, ordered, accuracy, margin, count, mean, variance)], dim=1)


def summarize(measures: Tensor) -> dict[str, float]:
    """Means over lists of `list_measures` (G, 7), and mean and population std of all their scores."""
    loss, ordered, accuracy, margin, count, mean, variance = measures.double().unbind(1)
    overall = (count * mean).sum() / count.sum()
    spread = (count * (variance + (mean - overall).square())).sum() / count.sum()
    return {
        "loss": loss.mean().item(),
        "accuracy": (accuracy.sum() / ordered.sum()).item(),
        "margin": (margin.sum() / ordered.sum()).item(),
        "mean_reward": overall.item(),
        "std_reward": spread.sqrt().item(),
    }
