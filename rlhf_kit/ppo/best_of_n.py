"""Best-of-n: sample n completions per prompt and keep the one that scores best. What PPO has to beat at equal KL.

One pool of n completions a prompt gives the whole curve, every m <= n: the expected score of the best of m of them,
beside the KL that best-of-m is away from the policy.

References
    Stiennon et al. 2020, "Learning to summarize from human feedback", arXiv:2009.01325, appendix G.3: the KL
    Nakano et al. 2021 (WebGPT), arXiv:2112.09332, appendix I: the estimator
    Gao et al. 2022, "Scaling Laws for Reward Model Overoptimization", arXiv:2210.10760: both, with a held-out score
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.chat import Message
from rlhf_kit.data.prompts import RESERVED
from rlhf_kit.errors import UserError
from rlhf_kit.generation.sampling import sample
from rlhf_kit.models.checkpoints import end_ids
from rlhf_kit.models.dropout import eval_mode
from rlhf_kit.models.forward import context_length
from rlhf_kit.options.bounds import number_faults
from rlhf_kit.ppo.experience import less_missing_eos
from rlhf_kit.ppo.prompts import encode_prompts
from rlhf_kit.ppo.rewards import RewardFunc, Rewards


@dataclass
class BestOfN:
    """A pool of n completions for each of B prompts, and what best-of-m makes of it. Place m - 1 of a curve is m."""

    completions: list[list[str]]  # B lists of n
    terminated: Tensor  # (B, n) bool: ended by itself, not cut off
    scores: Tensor  # (B, n) float32
    best: list[str]  # B completions, each its prompt's best; of equal ones the first
    kl: Tensor  # (n,) float64, nats per completion
    curve: Tensor  # (n,) float64, expected score of the best of m, mean over the prompts
    heldout_scores: Tensor | None = None  # (B, n) float32
    heldout_curve: Tensor | None = None  # (n,) float64, expected held-out score of the one that scores best

    def rows(self) -> list[dict[str, float]]:
        """The curve as rows {"n", "kl", "score"}, and "heldout" where there is one."""
        columns = {"n": torch.arange(1, len(self.kl) + 1), "kl": self.kl, "score": self.curve}
        if self.heldout_curve is not None:
            columns["heldout"] = self.heldout_curve
        return [
            dict(zip(columns, row, strict=True))
            for row in zip(*(column.tolist() for column in columns.values()), strict=True)
        ]


def best_of_n_kl(n: int) -> Tensor:
    """KL(best-of-m || policy) in nats per completion, m = 1 .. n: log m - (m - 1) / m. -> (n,) float64.

    Exact where no two completions are equal or score alike; an upper bound where some do (Beirami et al. 2024,
    arXiv:2401.01879). Source: Stiennon et al. 2020, appendix G.3.
    """
    m = torch.arange(1, n + 1, dtype=torch.float64)
    return m.log() - (m - 1) / m


def expected_best_of_m(scores: Tensor, values: Tensor | None = None) -> Tensor:
    """Expected value of the best-scored of m completions drawn from n, m = 1 .. n. (B, n) -> (B, n) float64.

    With the scores in rising order, s_(1) <= .. <= s_(n), the i-th is the best of C(i - 1, m - 1) of the C(n, m)
    subsets of m. The mean over all of them is unbiased for the expectation over m fresh completions:

        sum over i of  C(i - 1, m - 1) / C(n, m) * values_(i)

    Equal scores share: each of them is taken for the best equally often.

    Args:
        values: (B, n) what the chosen completion is worth, e.g. a held-out score; None: `scores` themselves.

    Source: Nakano et al. 2021, appendix I.
    """
    scores = scores.double()
    values = scores if values is None else values.double()
    n = scores.shape[1]
    ordered, places = scores.sort(dim=1, descending=True)
    tied = torch.zeros_like(places)
    tied[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)  # the number of each run of equal scores
    sums = torch.zeros_like(values).scatter_add(1, tied, values.gather(1, places))
    counts = torch.zeros_like(values).scatter_add(1, tied, torch.ones_like(values))
    shared = (sums / counts.clamp(min=1)).gather(1, tied)  # (B, n), from the best score to the worst
    # Counted from the best, k = 0, 1, ..: the first is drawn with chance m / n, and each of those before the k-th is
    # left out of the other m - 1 with chance (n - m - k + 1) / (n - k). No binomial is ever as large as it would be.
    k = torch.arange(1, n, dtype=torch.float64, device=scores.device)
    m = torch.arange(1, n + 1, dtype=torch.float64, device=scores.device)[:, None]
    left_out = ((n - m - k + 1) / (n - k)).cumprod(1)  # (m, n - 1), 0 from k = n - m + 1 on
    weights = torch.cat([torch.ones_like(m), left_out], 1) * m / n  # (m, n)
    return shared @ weights.T


def best_of_n(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[Message]],
    reward_funcs: RewardFunc | list[RewardFunc] | Rewards,
    n: int,
    *,
    max_completion_length: int,
    temperature: float = 1.0,
    missing_eos_penalty: float | None = None,
    heldout_funcs: RewardFunc | list[RewardFunc] | Rewards | None = None,
    columns: dict[str, list] | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
) -> BestOfN:
    """Sample `n` completions for each of B prompts, score each once, and give the best and the curve.

    Args:
        policy: a causal LM, with adapters or without; it is put in eval mode meanwhile, so that no dropout is drawn.
        prompts: texts or messages, as PPO takes them.
        reward_funcs: reward models and functions by GRPO's contract (see `rlhf_kit.ppo.rewards`), called once with
            all B * n completions, prompt after prompt, without `trainer_state`: nothing is trained. Or a `Rewards`,
            where weights or tokenizers are wanted.
        max_completion_length: tokens. temperature: of the draw, and of the policy that the KL is measured from.
        missing_eos_penalty: is taken off the score of a completion that never ended, as in `PPOConfig`; None: what
            the rewards say. Held-out scores stay as they are.
        heldout_funcs: a second score that chooses nothing, e.g. the truth: what best-of-m by the first one is worth.
        columns: further columns for the functions, each with one entry a prompt.
        generator: on the CPU; it alone decides the draw (None: torch's own). `batch_size` does not.
        batch_size: completions sampled, or scored by a reward model, at once.

    Raises:
        UserError: naming every fault of the arguments at once; and what `Rewards` raises.
    """
    prompts, columns = list(prompts), columns or {}
    numbers = {"n": n, "max_completion_length": max_completion_length, "batch_size": batch_size}
    numbers |= {"temperature": temperature, "missing_eos_penalty": missing_eos_penalty}
    _check(numbers, prompts, columns)
    limit = context_length(policy.config)
    rows = encode_prompts(_rows(prompts, columns), tokenizer, max_completion_length, limit, "best_of_n")
    device = next(policy.parameters()).device
    rewards, heldout = (_rewards(funcs, tokenizer, batch_size, device) for funcs in (reward_funcs, heldout_funcs))
    for judges in filter(None, (rewards, heldout)):
        judges.check(rows, max_completion_length)
    with eval_mode(policy):
        rollout = sample(
            policy,
            [row["prompt_ids"] for row in rows for _ in range(n)],
            eos_ids=end_ids(policy, tokenizer),
            pad_id=tokenizer.pad_token_id,
            max_completion_length=max_completion_length,
            temperature=temperature,
            generator=generator,
            batch_size=batch_size,
        )
    ids, texts = rollout.completions(), rollout.texts(tokenizer)
    arguments = ([prompt for prompt in prompts for _ in range(n)], texts, ids)
    repeated = {name: [value for value in column for _ in range(n)] for name, column in columns.items()}

    terminated = rollout.terminated.cpu().view(-1, n)  # (B * n,) -> (B, n)
    scores = rewards(*arguments, repeated)[0].cpu().view(-1, n)
    scores = less_missing_eos(scores, terminated, missing_eos_penalty)
    pool = [texts[start : start + n] for start in range(0, len(texts), n)]
    result = BestOfN(
        completions=pool,
        terminated=terminated,
        scores=scores,
        best=[row[at] for row, at in zip(pool, scores.argmax(1).tolist(), strict=True)],
        kl=best_of_n_kl(n),
        curve=expected_best_of_m(scores).mean(0),
    )
    if heldout is not None:
        result.heldout_scores = heldout(*arguments, repeated)[0].cpu().view(-1, n)
        result.heldout_curve = expected_best_of_m(scores, result.heldout_scores).mean(0)
    return result


def _check(numbers: dict[str, float | None], prompts: list, columns: dict[str, list]) -> None:
    faults = number_faults("best_of_n", **numbers)
    if not prompts:
        faults.append("prompts is empty")
    for name, column in columns.items():
        if name in ("prompt", *RESERVED):
            faults.append(f"the column {name!r} has the name of what a reward function gets anyway; rename it")
        if len(column) != len(prompts):
            faults.append(f"the column {name!r} has {len(column)} entries for {len(prompts)} prompts")
    if faults:
        raise UserError("best_of_n: " + "; ".join(faults) + ".")


def _rows(prompts: list, columns: dict[str, list]) -> list[dict]:
    return [{"prompt": prompt} | {name: columns[name][at] for name in columns} for at, prompt in enumerate(prompts)]


def _rewards(
    funcs: RewardFunc | list[RewardFunc] | Rewards | None, tokenizer: PreTrainedTokenizerBase, batch_size: int, device
) -> Rewards | None:
    if funcs is None:
        return None
    rewards = funcs if isinstance(funcs, Rewards) else Rewards(funcs, None, None, tokenizer, batch_size)
    return rewards.to(device)
