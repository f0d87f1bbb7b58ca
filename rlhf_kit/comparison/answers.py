"""What policies answer to the same prompts with the same draws, and how good that is: one path for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit import intervals, world
from rlhf_kit.comparison.records import LONGEST, TEMPERATURE
from rlhf_kit.data.chat import encode_prompt
from rlhf_kit.generation.sampling import Rollout, sample
from rlhf_kit.models.checkpoints import end_ids
from rlhf_kit.models.value import completion_logprobs
from rlhf_kit.ppo.best_of_n import best_of_n_kl
from rlhf_kit.ppo.rewards import Rewards

SLOTS = 64  # answers sampled at once
ROWS = 32  # of a forward without a cache

# As `Rewards` is called: prompts, completions, their tokens, further columns -> the truth of each, and whether it is
# correct, where somebody can tell.
Judge = Callable[
    [Sequence, Sequence[str], Sequence[Sequence[int]], dict[str, list]], tuple[list[float], list[float] | None]
]


def world_judge(prompts: Sequence, texts: Sequence[str], ids: Sequence, columns: dict) -> tuple[list, list]:
    """The embedded world's own."""
    judgements = [world.judge(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    return [judgement.score for judgement in judgements], [float(judgement.correct) for judgement in judgements]


def scored_by(rewards: Rewards) -> Judge:
    """A reward model or function in the place of the truth; what is correct nobody tells."""

    def judge(prompts: Sequence, texts: Sequence[str], ids: Sequence, columns: dict) -> tuple[list, None]:
        return rewards(list(prompts), list(texts), list(ids), columns)[0].tolist(), None

    return judge


@dataclass
class Answers:
    """One policy's answers to the prompts, a number each."""

    texts: list[str]
    truth: list[float]
    correct: list[float] | None
    scores: list[float]  # of the reward model
    kl: list[float]  # to the SFT policy, nats
    entropy: list[float] | None  # nats a token; of the best of several draws nobody can tell
    length: list[int]  # tokens, with the one that ends it


@dataclass(frozen=True)
class Questions:
    """What every policy is asked, and by whom its answers are judged."""

    prompts: Sequence
    tokenizer: PreTrainedTokenizerBase
    sft: PreTrainedModel
    rewards: Rewards
    judge: Judge
    temperature: float = TEMPERATURE
    max_completion_length: int = LONGEST
    columns: dict[str, list] = field(default_factory=dict)  # of the prompts, for functions that judge

    def answers(self, policy: PreTrainedModel, seed: int, n: int = 1) -> Answers:
        """One answer a prompt, sampled from the distribution that is trained, with the same draws for every policy; of
        n that are drawn the one that the rewards like best (of equal ones the first)."""
        rollout = sample(
            policy,
            [encode_prompt(self.tokenizer, prompt) for prompt in self.prompts for _ in range(n)],
            eos_ids=end_ids(policy, self.tokenizer),
            pad_id=self.tokenizer.pad_token_id,
            max_completion_length=self.max_completion_length,
            temperature=self.temperature,
            generator=torch.Generator().manual_seed(seed),
            batch_size=SLOTS,
        )
        scores = self._scores(rollout, n).view(-1, n)
        best = scores.argmax(1)
        if n > 1:
            rollout = rollout.select(torch.arange(len(best)) * n + best)
        texts = rollout.texts(self.tokenizer)
        truth, correct = self.judge(self.prompts, texts, rollout.completions(), self.columns)
        entropy = rollout.entropy.sum(1) / rollout.completion_lengths
        return Answers(
            texts=texts,
            truth=truth,
            correct=correct,
            scores=scores.gather(1, best[:, None])[:, 0].tolist(),
            kl=self._kl(policy, rollout) if n == 1 else [float(best_of_n_kl(n)[-1])] * len(texts),
            entropy=entropy.tolist() if n == 1 else None,
            length=rollout.completion_lengths.tolist(),
        )

    def _scores(self, rollout: Rollout, n: int) -> Tensor:
        """Of each prompt's n completions. -> (B * n,)"""
        prompts = [prompt for prompt in self.prompts for _ in range(n)]
        columns = {name: [value for value in column for _ in range(n)] for name, column in self.columns.items()}
        return self.rewards(prompts, rollout.texts(self.tokenizer), rollout.completions(), columns)[0].cpu()

    def _kl(self, policy: PreTrainedModel, rollout: Rollout) -> list[float]:
        if policy is self.sft:
            return [0.0] * len(rollout.completion_lengths)
        return kl_to(self.sft, rollout, self.temperature).tolist()


def kl_to(sft: PreTrainedModel, rollout: Rollout, temperature: float) -> Tensor:
    """KL(policy || SFT) in nats by what was drawn, whose log-probs the sampler has. -> (B,), of each answer"""
    return (rollout.logprobs - answer_logprobs(sft, rollout, temperature)).sum(1)


@torch.no_grad()
def answer_logprobs(policy: PreTrainedModel, rollout: Rollout, temperature: float) -> Tensor:
    """(B, R) log-probs of the sampled tokens, 0 behind them; rows of a like length together."""
    result = torch.zeros(rollout.completion_ids.shape, device=rollout.completion_ids.device)
    for rows in rollout.by_length(ROWS):
        part = rollout.select(rows)
        logprobs = completion_logprobs(policy, part.model_inputs(), temperature)
        result[rows, : logprobs.shape[1]] = logprobs
    return result


# --- beside another policy ------------------------------------------------------------------------------------------


def wins(policy: Answers, other: Answers) -> list[float]:
    """Of each prompt whether the first answer is the better one; a tie is half a win."""
    return [(a > b) + 0.5 * (a == b) for a, b in zip(policy.truth, other.truth, strict=True)]


def summarize(policy: Answers, sft: Answers) -> dict[str, float]:
    """Means over the prompts."""
    return {
        "truth": mean(policy.truth),
        "correct": mean(policy.correct),
        "reward_model_score": mean(policy.scores),
        "kl": mean(policy.kl),
        "win_rate_vs_sft": mean(wins(policy, sft)),
    }


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def differences(after: Answers, before: Answers, seed: int) -> dict[str, tuple[float, float] | None]:
    """95 % intervals of the mean difference, prompt by prompt."""
    pairs = {
        "truth": (after.truth, before.truth),
        "correct": (after.correct, before.correct),
        "reward_model_score": (after.scores, before.scores),
    }
    prompts = np.arange(len(after.texts))
    figures = {name: intervals.mean(np.subtract(*values), prompts) for name, values in pairs.items()}
    return intervals.intervals(figures, prompts, seed)
