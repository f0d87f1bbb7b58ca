"""A rollout in numbers, over all processes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_kit import ops
from rlhf_kit.ppo.experience import Experience

LOGGED = {  # what `losses` calls it -> its name in the logs
    "policy": "loss/policy",
    "value": "loss/value",
    "entropy": "loss/entropy",
    "ptx": "loss/ptx",
    "ratio": "policy/ratio",
    "clip_fraction": "policy/clip_fraction",
    "approx_kl": "policy/approx_kl",
    "value_clip_fraction": "value/clip_fraction",
}


class Averages:
    """Means over all processes; `reduce` sums a tensor over them."""

    def __init__(self, reduce: Callable[[Tensor], Tensor], device: torch.device):
        self.reduce, self.device = reduce, device

    def mean(self, x: Tensor) -> float:
        """Over completions that have a number (not NaN). (B,) -> float."""
        x = x.to(self.device).float()
        total, count = self.reduce(torch.stack([x.nansum(), (~x.isnan()).sum().float()])).tolist()
        return total / count if count else float("nan")

    def std(self, x: Tensor) -> float:
        """Population standard deviation. (B,) -> float."""
        return max(self.mean(x * x) - self.mean(x) ** 2, 0.0) ** 0.5

    def token_means(self, xs: dict[str, Tensor], mask: Tensor) -> dict[str, float]:
        """Over the chosen tokens, all of them at one go. (B, R) each."""
        sums = torch.stack([mask.sum().float(), *(ops.masked_sum(x, mask) for x in xs.values())])
        count, *totals = self.reduce(sums).tolist()
        return {name: total / max(count, 1) for name, total in zip(xs, totals, strict=True)}


class Tracked:
    """What happens between two logs, number by number; a log is their mean, over the time and over all processes."""

    def __init__(self, reduce: Callable[[Tensor], Tensor], processes: int):
        self.reduce, self.processes = reduce, processes
        self.values: dict[str, list[Tensor | float]] = defaultdict(list)

    def add(self, name: str, value: Tensor | float) -> None:
        """Every process adds the same names in the same order; a tensor is not waited for."""
        self.values[name].append(value.detach() if isinstance(value, Tensor) else value)

    def means(self) -> dict[str, float]:
        """The mean of each number, and a fresh start. Every process takes part."""
        if not self.values:
            return {}
        means = torch.stack([torch.tensor(values).mean() for values in self.values.values()])
        device = next((x.device for values in self.values.values() for x in values if isinstance(x, Tensor)), None)
        totals = self.reduce(means.to(device)).tolist()
        names = list(self.values)
        self.values.clear()
        return {name: total / self.processes for name, total in zip(names, totals, strict=True)}


def rollout_metrics(
    experience: Experience,
    parts: dict[str, Tensor],
    ref_logprobs: Tensor,
    entropy: Tensor,
    averages: Averages,
) -> dict[str, float]:
    """The numbers that docs/metrics.md explains, of one rollout before its update."""
    rollout, logprobs = experience.rollout, experience.logprobs
    mask, values, returns = rollout.completion_mask, experience.values, experience.returns
    kl = ops.kl_k1(logprobs, ref_logprobs)
    per_token = {
        "kl_per_token": kl,
        "kl_k3_per_token": ops.kl_k3(logprobs, ref_logprobs),
        "entropy": entropy,
        "value/mean": values,
        "value/return": returns,
        "residual": (returns - values) ** 2,
        "square": returns**2,
    }
    means = averages.token_means(per_token, mask)
    ended, cut_off = (
        experience.scores.masked_fill(~rows, math.nan) for rows in (rollout.terminated, ~rollout.terminated)
    )
    gap = averages.mean(ended) - averages.mean(cut_off)
    residual, spread = means.pop("residual"), means.pop("square") - means["value/return"] ** 2
    return {
        "reward": averages.mean(experience.scores),
        "reward_std": averages.std(experience.scores),
        **{f"rewards/{name}": averages.mean(part) for name, part in parts.items()},
        "kl": averages.mean((kl * mask).sum(1)),
        **means,
        "value/explained_variance": 1 - residual / max(spread, 1e-8),
        "completions/length": averages.mean(rollout.completion_lengths),
        "completions/terminated": averages.mean(rollout.terminated),
        **({} if math.isnan(gap) else {"completions/ended_score_gap": gap}),  # all or none ended
    }
