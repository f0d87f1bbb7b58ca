"""The mathematics of RLHF as pure functions on tensors: log-probs, masked moments, KL, GAE, PPO and ranking losses.

Notation: B completions, R completion tokens, V vocabulary, N answers (of all rankings in a batch), G rankings.
Masks are bool and True means keep. Log-probs and KL are in nats. Everything is computed in float32.

References
    Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", arXiv:1909.08593
    Ouyang et al. 2022 (InstructGPT), "Training language models to follow instructions", arXiv:2203.02155
    Schulman et al. 2016 (GAE), arXiv:1506.02438; Schulman et al. 2017 (PPO), arXiv:1707.06347
    Schulman 2020, "Approximating KL Divergence", joschu.net/blog/kl-approx.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# ------------------------------------------------------------------------------------------
# Masks and moments


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Mask of the first `lengths` places. (B,) -> (B, size) bool.

    >>> length_mask(torch.tensor([1, 3]), 3).int().tolist()
    [[1, 0, 0], [1, 1, 1]]
    """
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that follow the mask, so that padding on either side moves nothing. (B, T) -> (B, T).

    Padding gets position 0: it must be a valid index and is never attended to.

    >>> position_ids(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])).tolist()
    [[0, 0, 0, 1], [0, 1, 2, 0]]
    """
    mask = attention_mask.long()
    return (mask.cumsum(-1) - 1) * mask


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over the kept places. A NaN in a masked place does not leak in, a NaN in a kept one is not hidden."""
    return torch.where(mask, x, 0.0).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the kept places; 0 when none is kept."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


def whiten(x: Tensor, mask: Tensor, reduce=None, eps: float = 1e-8) -> Tensor:
    """Shift and scale to mean 0, population variance 1 over the kept places; masked places become 0. (B, R) -> (B, R).

    Args:
        reduce: sums a tensor over all processes (`accelerator.reduce`), so that every process whitens by the moments
            of the whole rollout. `None` for one process.
    """
    total = reduce or (lambda t: t)
    count = total(mask.sum().float()).clamp(min=1)
    mean = total(masked_sum(x, mask)) / count
    variance = total(masked_sum((x - mean) ** 2, mask)) / count
    return torch.where(mask, (x - mean) * torch.rsqrt(variance + eps), 0.0)


def first_not_finite(tensors: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """The name of the first of these that holds a NaN or an infinity; None where all are finite."""
    return next((name for name, x in tensors if x is not None and not bool(x.isfinite().all())), None)


# ------------------------------------------------------------------------------------------
# Distributions


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log pi(token) under softmax(logits / temperature). (..., V), (...) -> (...) float32."""
    return _TokenLogprobs.apply(logits, tokens, temperature)


class _TokenLogprobs(torch.autograd.Function):
    """A few rows at a time: their float32 copies stay in the processor's cache, and no float32 (..., V) is made.

    The gradient is (onehot - softmax) / temperature, from the logits as the model gave them.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        rows, places = logits.reshape(-1, logits.shape[-1]), tokens.reshape(-1, 1)  # (N, V), (N, 1)
        logprobs, normalisers = torch.empty(2, len(rows), device=logits.device)
        for part in _parts(rows):
            x = rows[part].float() / temperature
            normalisers[part] = x.logsumexp(-1)
            logprobs[part] = x.gather(-1, places[part]).squeeze(-1) - normalisers[part]
        ctx.save_for_backward(rows, places, normalisers)
        ctx.temperature, ctx.shape = temperature, logits.shape
        return logprobs.view(tokens.shape)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        rows, places, normalisers = ctx.saved_tensors
        scale = gradient.reshape(-1, 1) / ctx.temperature
        result = torch.empty_like(rows)
        for part in _parts(rows):
            x = (rows[part].float() / ctx.temperature).sub_(normalisers[part, None]).exp_().mul_(-scale[part])
            result[part] = x.scatter_add_(-1, places[part], scale[part])
        return result.view(ctx.shape), None, None


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of softmax(logits / temperature). (..., V) -> (...) float32."""
    rows = logits.reshape(-1, logits.shape[-1])
    parts = []
    for part in _parts(rows):
        logprobs = F.log_softmax(rows[part].float() / temperature, dim=-1)
        parts.append(-(logprobs.exp() * logprobs).sum(-1))
    return torch.cat(parts).view(logits.shape[:-1])


def _parts(rows: Tensor) -> Iterator[slice]:
    """Slices over the rows of (N, V) of about 2 MB in float32 each, or of 256 MB off the CPU. At least one."""
    size = max(1, (1 << 19 if rows.device.type == "cpu" else 1 << 26) // rows.shape[-1])
    yield from (slice(start, start + size) for start in range(0, max(len(rows), 1), size))


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Unbiased one-sample estimate of KL(policy || reference), token by token; may be negative (Schulman 2020, k1)."""
    return logprobs - ref_logprobs


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Unbiased, never negative, low-variance estimate of the same KL; for logging (Schulman 2020, k3)."""
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": kl_k1, "k3": kl_k3}


# ------------------------------------------------------------------------------------------
# PPO


def token_rewards(
    scores: Tensor, kl: Tensor, completion_mask: Tensor, kl_coef: float, bonus: Tensor | float = 0.0
) -> Tensor:
    """Per-token rewards: `bonus` - kl_coef * kl, and the score at the last chosen token. (B,), (B, R) -> (B, R).

    Source: Ziegler et al. 2019, eq. 2. The last chosen token is EOS when the policy chose EOS.
    """
    rewards = torch.where(completion_mask, bonus - kl_coef * kl, 0.0)
    last = completion_mask.sum(1, keepdim=True) - 1  # (B, 1)
    return rewards.scatter_add(1, last.clamp(min=0), torch.where(last >= 0, scores[:, None].to(rewards.dtype), 0.0))


def gae(
    rewards: Tensor, values: Tensor, completion_mask: Tensor, gamma: float, lam: float, bootstrap: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation. (B, R), (B, R) -> advantages (B, R), returns (B, R).

        delta_t = r_t + gamma * V_{t+1} - V_t,    A_t = delta_t + gamma * lam * A_{t+1},    return_t = A_t + V_t

    Args:
        bootstrap: (B,) V after the last chosen token: 0 for a terminated completion (the default for all), the value
            of the state that was cut off for a truncated one.

    Source: Schulman et al. 2016, eq. 11 to 16.
    """
    values = torch.where(completion_mask, values, 0.0)
    next_value = torch.zeros_like(values[:, 0]) if bootstrap is None else bootstrap.to(values.dtype)
    running = torch.zeros_like(next_value)
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        here = completion_mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(here, delta + gamma * lam * running, running)
        next_value = torch.where(here, values[:, t], next_value)
        advantages[:, t] = torch.where(here, running, 0.0)
    return advantages, torch.where(completion_mask, advantages + values, 0.0)


def ppo_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Clipped surrogate, token by token: max(-A * ratio, -A * clip(ratio)). (B, R) -> losses, ratios, clipped (bool).

    The log-ratio is held to +-20, so that a token that became impossible gives a huge loss and not an infinite one.

    Source: Schulman et al. 2017, eq. 7.
    """
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(plain, clipped), ratio, clipped > plain


def importance_weights(logprobs: Tensor, sampled_logprobs: Tensor, cap: float) -> Tensor:
    """min(p(token) / p_sampler(token), cap), what a token counts that another distribution drew. (B, R) -> (B, R).

    Of the policy before its update, whatever the update's own ratio is. The log-ratio is held to +-20.

    Source: Ionides 2008, "Truncated Importance Sampling"; token by token between a sampler and a trainer that compute
    otherwise: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training".
    """
    return (logprobs - sampled_logprobs).clamp(-20, 20).exp().clamp(max=cap)


def ppo_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """Half the squared error, the larger of plain and clipped around the old value. (B, R) -> losses, clipped (bool).

    Source: Ziegler et al. 2019, code (`train_policy.py`, loss).
    """
    near = old_values + (values - old_values).clamp(-cliprange, cliprange)
    plain, clipped = (values - returns) ** 2, (near - returns) ** 2
    return 0.5 * torch.maximum(plain, clipped), clipped > plain


# ------------------------------------------------------------------------------------------
# Ranked rewards


def ordered_pairs(groups: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Index pairs (better, worse) of all strictly ordered answers to the same prompt. (N,), (N,) -> (M,), (M,).

    >>> better, worse = ordered_pairs(torch.tensor([0, 0, 0]), torch.tensor([1, 2, 2]))
    >>> list(zip(better.tolist(), worse.tolist()))
    [(0, 1), (0, 2)]
    """
    better = (groups[:, None] == groups[None, :]) & (ranks[:, None] < ranks[None, :])  # (N, N)
    return better.nonzero(as_tuple=True)


def mean_per_group(x: Tensor, group: Tensor, size: int | None = None) -> tuple[Tensor, Tensor]:
    """Mean of x (M,) by group number (M,). -> means (G,), valid (G,): whether the group has any entry.

    Args:
        size: G; None: up to the last group that has an entry.
    """
    if size is None:
        size = int(group.max()) + 1 if group.numel() else 0
    count = torch.zeros(size, dtype=x.dtype, device=x.device).index_add(0, group, torch.ones_like(x))
    total = torch.zeros(size, dtype=x.dtype, device=x.device).index_add(0, group, x)
    return total / count.clamp(min=1), count > 0


def tied_pairs(groups: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Index pairs of all answers to the same prompt that share a rank, each pair once. (N,), (N,) -> (M,), (M,)."""
    tied = (groups[:, None] == groups[None, :]) & (ranks[:, None] == ranks[None, :])  # (N, N)
    return tied.triu(1).nonzero(as_tuple=True)


def pairwise_losses(
    scores: Tensor,
    groups: Tensor,
    ranks: Tensor,
    margins: Tensor | None = None,
    label_smoothing: float = 0.0,
    ties: bool = False,
) -> Tensor:
    """Mean of -log sigmoid(s_better - s_worse - margin) over the pairs of each prompt that has any. (N,) -> (G',).

    All pairs of a prompt form one element, so that a long ranking weighs as much as a short one.

    Args:
        scores: (N,) reward of each answer. groups: (N,) which prompt it answers. ranks: (N,) 1 = best, equal = tie.
        margins: (N,) margin asked for against any worse answer; 0 when None.
        label_smoothing: chance that a labeler swapped the two; that share of the loss asks for the reverse.
        ties: count the tied pairs too, with either order as likely as the other (a target of 0.5).

    Source: InstructGPT, section 3.5, eq. 1; the margin is Llama 2's (arXiv:2307.09288, eq. 2); the smoothing is
    "conservative" (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3).
    """
    better, worse = ordered_pairs(groups, ranks)
    difference = scores.float()[better] - scores.float()[worse]
    if margins is not None:
        difference = difference - margins.float()[better]
    smooth = torch.full_like(difference, label_smoothing)
    if ties:
        first, second = tied_pairs(groups, ranks)
        better = torch.cat([better, first])
        difference = torch.cat([difference, scores.float()[first] - scores.float()[second]])
        smooth = torch.cat([smooth, torch.full((len(first),), 0.5, device=smooth.device)])
    losses = -(1 - smooth) * F.logsigmoid(difference) - smooth * F.logsigmoid(-difference)
    means, valid = mean_per_group(losses, groups[better])
    return means[valid]


def plackett_luce_losses(scores: Tensor, groups: Tensor, ranks: Tensor) -> Tensor:
    """-log P(ranking) / (K - 1) of each prompt: the best is drawn by softmax, then the next of the rest. (N,) -> (G,).

    For K = 2 it is the pairwise loss. Of d answers that tie, the r-th to be drawn (r = 0 .. d - 1) meets the others
    with weight 1 - r / d each, and all that are worse (Efron's form).

    Source: Plackett 1975, "The Analysis of Permutations"; ties: Efron 1977, "The Efficiency of Cox's Likelihood
    Function for Censored Data", section 6.
    """
    same = groups[:, None] == groups[None, :]  # (N, N)
    tied = same & (ranks[:, None] == ranks[None, :])
    drawn = tied.tril(-1).sum(1) / tied.sum(1)  # (N,) r / d
    weights = torch.where(tied, 1 - drawn[:, None], (same & (ranks[:, None] < ranks[None, :])).float())
    scores = scores.float()
    losses = (weights.log() + scores[None, :]).logsumexp(1) - scores
    means, _ = mean_per_group(losses, groups)
    size = torch.bincount(groups)
    return means * size / (size - 1).clamp(min=1)


def best_of_losses(scores: Tensor, groups: Tensor, ranks: Tensor) -> Tensor:
    """-log softmax over a prompt's answers at its best one; several best ones share alike. (N,) -> (G,).

    Source: Ziegler et al. 2019, section 2, eq. 1 (the best of four).
    """
    same = groups[:, None] == groups[None, :]  # (N, N)
    best = ~(same & (ranks[None, :] < ranks[:, None])).any(1)  # (N,)
    scores = scores.float()
    normalisers = torch.where(same, scores[None, :], -torch.inf).logsumexp(1)
    return mean_per_group((normalisers - scores)[best], groups[best])[0]


def pair_accuracy(scores: Tensor, groups: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Share of a prompt's strictly ordered pairs that the scores order the same way; an equal score counts 0.5.

    -> accuracy (G,), valid (G,): False for a prompt without an ordered pair.
    """
    better, worse = ordered_pairs(groups, ranks)
    difference = scores.float()[better] - scores.float()[worse]
    return mean_per_group((torch.sign(difference) + 1) / 2, groups[better])


def thumbs_losses(scores: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Binary cross entropy of sigmoid(score) against thumbs up (True) or down. (N,), (N,) -> (N,).

    Args:
        label_smoothing: chance that the thumb was meant the other way.
    """
    targets = labels.float() * (1 - 2 * label_smoothing) + label_smoothing
    return F.binary_cross_entropy_with_logits(scores.float(), targets, reduction="none")
