"""Advantages, losses and the KL controllers of PPO, for the trainer and for any loop of your own.

rollout  -> scores, log-probs, values -> `advantages` -> Experience -> micro-batches -> `losses`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_kit import ops
from rlhf_kit.generation.sampling import Rollout
from rlhf_kit.ppo.config import PPOConfig

LEARNT = ("logprobs", "values", "advantages", "returns")  # of a micro-batch, beside what the model reads


class TokenReadings(NamedTuple):
    """What a policy and its value function say of the tokens of a rollout, float32."""

    logprobs: Tensor  # (B, R)
    values: Tensor  # (B, R + 1) V of the state before each token, and after the last
    entropy: Tensor  # (B, R)


@dataclass
class Experience:
    """A rollout and what is learnt from it, float32."""

    rollout: Rollout
    scores: Tensor  # (B,)
    logprobs: Tensor  # (B, R) log pi_old(token), the policy that sampled
    values: Tensor  # (B, R) V_old(state before the token)
    advantages: Tensor  # (B, R)
    returns: Tensor  # (B, R)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """A micro-batch: what the model and `losses` read, for these rows."""
        rollout = self.rollout.select(rows)
        width = rollout.completion_ids.shape[1]
        learnt = {name: getattr(self, name)[rows, :width] for name in LEARNT}
        return rollout.model_inputs() | learnt


def advantages(
    rollout: Rollout,
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    values: Tensor,
    *,
    kl_coef: float,
    kl_estimator: str = "k1",
    sharpening_coef: float = 0.0,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap_truncated: bool = False,
    whiten: bool = True,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores, less the KL penalty, sharpened, as advantages and returns of every token. -> two of (B, R).

    Args:
        scores: (B,). logprobs, ref_logprobs: (B, R). values: (B, R + 1), the last of them V after the completion.
        bootstrap_truncated: continue a truncated completion with V of its last state; a terminated one ends in 0.
        reduce: sums over all processes, for whitening.

    Source: Ziegler et al. 2019, eq. 2; Huang et al. 2024, arXiv:2412.01951 (sharpening); Schulman et al. 2016.
    """
    mask = rollout.completion_mask
    kl = ops.KL_ESTIMATORS[kl_estimator](logprobs, ref_logprobs)
    rewards = ops.token_rewards(scores, kl, mask, kl_coef, sharpening_coef * ref_logprobs)
    bootstrap = None
    if bootstrap_truncated:
        last = values.gather(1, rollout.completion_lengths[:, None]).squeeze(1)
        bootstrap = torch.where(rollout.terminated, 0.0, last)
    gains, returns = ops.gae(rewards, values[:, :-1], mask, gamma, lam, bootstrap)
    return (ops.whiten(gains, mask, reduce) if whiten else gains), returns


def losses(
    output: dict[str, Tensor], batch: dict[str, Tensor], cliprange: float = 0.2, cliprange_value: float = 0.2
) -> dict[str, Tensor]:
    """Sums over the tokens of a micro-batch, to be divided by the tokens of the mini-batch: policy, value, entropy.

    Args:
        output: of `PolicyAndValue`, the policy as it is now. batch: of `Experience.batch`, the policy as it sampled.

    Returns:
        "policy", "value" (to minimise), "entropy" (when `output` has it), and for the logs, without gradient:
        "ratio", "clip_fraction", "approx_kl", "value_clip_fraction".
    """
    mask = batch["completion_mask"]
    policy, ratio, clipped = ops.ppo_policy_loss(output["logprobs"], batch["logprobs"], batch["advantages"], cliprange)
    value, value_clipped = ops.ppo_value_loss(
        output["values"][:, :-1], batch["values"], batch["returns"], cliprange_value
    )
    with torch.no_grad():
        seen = {
            "ratio": ratio,
            "clip_fraction": clipped.float(),
            "approx_kl": ops.kl_k3(batch["logprobs"], output["logprobs"]),
            "value_clip_fraction": value_clipped.float(),
        }
        seen = {name: ops.masked_sum(x, mask) for name, x in seen.items()}
    trained = {"policy": policy, "value": value}
    if "entropy" in output:
        trained["entropy"] = output["entropy"]
    return {name: ops.masked_sum(x, mask) for name, x in trained.items()} | seen


# --- what shapes the rewards ---------------------------------------------------------------------------------------


def shaped_scores(
    scores: Tensor, terminated: Tensor, *, std: float, clip: float | None, missing_eos_penalty: float | None
) -> Tensor:
    """Divide by `std`, clip, then take off the penalty of what never ended, which no clip so takes away. (B,) -> (B,).

    Args:
        std: of all scores so far; 1 without `reward_scaling`. clip: to +- this; None: never.
    """
    scores = scores / std
    if clip is not None:
        scores = scores.clamp(-clip, clip)
    return less_missing_eos(scores, terminated, missing_eos_penalty)


def less_missing_eos(scores: Tensor, terminated: Tensor, penalty: float | None) -> Tensor:
    """Scores, those of completions that never ended less the `penalty` (None: as they are). Two of one shape -> it.

    Subtracted, as the "EOS trick" of Huang et al. 2024 is in TRL: a fixed score in their place would be a reward where
    all others are below it.
    """
    return scores if penalty is None else scores - penalty * (~terminated).to(scores.dtype)


class RunningStd:
    """Standard deviation of all scores so far, over all processes (Chan et al. 1983's update of two moments)."""

    def __init__(self):
        self.count, self.mean, self.square = 0.0, 0.0, 0.0

    def update(self, scores: Tensor, reduce: Callable[[Tensor], Tensor]) -> None:
        scores = scores.float()
        count, total = reduce(torch.stack([torch.ones_like(scores).sum(), scores.sum()])).tolist()
        mean = total / count
        spread = float(reduce((scores - mean).square().sum()))
        gap, both = mean - self.mean, self.count + count
        self.square += spread + gap**2 * self.count * count / both
        self.mean += gap * count / both
        self.count = both

    @property
    def std(self) -> float:
        """1 until there are two different scores."""
        return (self.square / self.count) ** 0.5 if self.square > 0 else 1.0


class FixedKL:
    """A constant coefficient."""

    def __init__(self, coef: float):
        self.coef = coef

    def update(self, kl: float, completions: int) -> None:
        pass


class AdaptiveKL(FixedKL):
    """A proportional controller that holds the KL near a target (Ziegler et al. 2019, section 2.2).

        error = clip(kl / target - 1, -0.2, 0.2),    coef *= 1 + error * completions / horizon

    Args:
        target: nats per completion. horizon: completions over which the coefficient reacts.
    """

    def __init__(self, coef: float, target: float, horizon: int):
        super().__init__(coef)
        self.target, self.horizon = target, horizon

    def update(self, kl: float, completions: int) -> None:
        """Move the coefficient after a rollout of `completions` whose mean KL was `kl` nats."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * completions / self.horizon


def kl_controller(args: PPOConfig) -> FixedKL:
    """As `args` ask: adaptive where there is a target."""
    if args.kl_target is None:
        return FixedKL(args.kl_coef)
    return AdaptiveKL(args.kl_coef, args.kl_target, args.kl_horizon)
