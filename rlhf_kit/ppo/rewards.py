"""Where scores come from: reward models and Python functions, weighted, by TRL's GRPO contract.

A function is called as `f(prompts=..., completions=..., completion_ids=..., **columns)`, one entry a completion, and
returns a list of numbers; `None` means "no opinion on this one". It may be a coroutine. For a conversational prompt a
completion is `[{"role": "assistant", "content": ...}]`, for a text prompt a string. A reward model is an
`AutoModelForSequenceClassification` with one label; it reads the text, so that it may have a tokenizer of its own.
Several of them can be one reward (`models.ensemble.Ensemble`).
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections import Counter
from collections.abc import Callable

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.errors import UserError
from rlhf_kit.models.checkpoints import load_reward_model, load_tokenizer
from rlhf_kit.models.dropout import disable_dropout
from rlhf_kit.models.ensemble import Ensemble
from rlhf_kit.models.heads import score_texts

RewardFunc = str | PreTrainedModel | PeftModel | Ensemble | Callable
MODELS = (PreTrainedModel, PeftModel)


class Rewards:
    """The weighted sum of several rewards.

    Args:
        funcs: hub ids or folders of reward models, models, ensembles of them, functions; one or a list.
        tokenizers: one a function, None where the policy's serves (or for an ensemble or a Python function).
        weights: one a function; None for 1.0 each.
        batch_size: completions a forward of a reward model.
    """

    def __init__(
        self,
        funcs: RewardFunc | list[RewardFunc],
        tokenizers: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None,
        weights: list[float] | None,
        policy_tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
    ):
        self.funcs = list(funcs) if isinstance(funcs, list | tuple) else [funcs]
        if not self.funcs:
            raise UserError("reward_funcs is empty; give a reward model's folder or a function.")
        self.tokenizers = list(tokenizers) if isinstance(tokenizers, list | tuple) else [tokenizers] * len(self.funcs)
        self.weights = [1.0] * len(self.funcs) if weights is None else list(weights)
        for what, given in (("reward_processing_classes", self.tokenizers), ("reward_weights", self.weights)):
            if len(given) != len(self.funcs):
                raise UserError(f"{what} has {len(given)} entries for {len(self.funcs)} reward functions.")
        self.batch_size = batch_size
        self.disagreement: Tensor | None = None  # (B,) of the last call: std over the members of the ensemble
        self.names = _distinct([_name(func) for func in self.funcs])
        for i, func in enumerate(self.funcs):
            if isinstance(func, str):
                self.tokenizers[i] = self.tokenizers[i] or load_tokenizer(func, needs_eos=False)
                self.funcs[i] = load_reward_model(func, tokenizer=self.tokenizers[i])
            if isinstance(self.funcs[i], MODELS):
                if self.funcs[i].config.num_labels != 1:
                    raise UserError(
                        f"Reward model {self.names[i]!r} has {self.funcs[i].config.num_labels} labels, not 1."
                    )
                self.tokenizers[i] = self.tokenizers[i] or policy_tokenizer
        for model in self.models:
            disable_dropout(model.eval().requires_grad_(False))

    @property
    def models(self) -> list[PreTrainedModel]:
        """All reward models, those of ensembles included."""
        ensembles = [func.models for func in self.funcs if isinstance(func, Ensemble)]
        return [func for func in self.funcs if isinstance(func, MODELS)] + sum(ensembles, [])

    def to(self, device) -> Rewards:
        for model in self.models:
            model.to(device)
        return self

    def __call__(
        self, prompts: list, completions: list[str], completion_ids: list[list[int]], columns: dict[str, list], **extra
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores of B completions. -> weighted sum (B,), and each function's own scores (B,), NaN where it had none.

        Raises:
            UserError: naming the function and the sample, when a score is NaN, missing everywhere, or ill-counted.
        """
        parts = {}
        spoken = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, completions, strict=True)
        ]
        for name, func, tokenizer in zip(self.names, self.funcs, self.tokenizers, strict=True):
            if isinstance(func, MODELS):
                parts[name] = score_texts(func, tokenizer, prompts, completions, self.batch_size)
            elif isinstance(func, Ensemble):
                members = func.member_scores(prompts, completions)  # (M, B)
                parts[name], self.disagreement = func.combine(members), members.std(0, correction=0)
            else:
                given = dict(prompts=prompts, completions=spoken, completion_ids=completion_ids, **columns, **extra)
                parts[name] = _checked(name, _call(name, func, given), completions)
        stacked = torch.stack(list(parts.values()))  # (functions, B)
        nobody = stacked.isnan().all(0)
        if nobody.any():
            row = int(nobody.nonzero()[0])
            raise UserError(f"No reward function scored this completion: {completions[row]!r}.")
        weights = torch.tensor(self.weights)[:, None]
        return (weights * stacked).nansum(0), parts


def _call(name: str, func: Callable, given: dict) -> list:
    try:
        result = func(**given)
        return asyncio.run(result) if inspect.iscoroutine(result) else result
    except Exception as error:
        first = given["prompts"][0]
        raise UserError(
            f"Reward function {name!r} raised {type(error).__name__}: {error}. It was given "
            f"{len(given['prompts'])} completions, the first {given['completions'][0]!r} to the prompt {first!r}."
        ) from error


def _checked(name: str, scores: list, completions: list[str]) -> Tensor:
    if len(scores) != len(completions):
        raise UserError(f"Reward function {name!r} returned {len(scores)} scores for {len(completions)} completions.")
    for score, completion in zip(scores, completions, strict=True):
        if score is not None and not math.isfinite(score):
            raise UserError(f"Reward function {name!r} returned {score} for the completion {completion!r}.")
    return torch.tensor([math.nan if score is None else float(score) for score in scores])


def _name(func: RewardFunc) -> str:
    if isinstance(func, str):
        return func.rstrip("/").split("/")[-1]
    if isinstance(func, MODELS):
        return func.config._name_or_path.rstrip("/").split("/")[-1] or "reward_model"
    return getattr(func, "__name__", type(func).__name__)


def _distinct(names: list[str]) -> list[str]:
    """Names of which none occurs twice: a/reward and b/reward are two rewards.

    >>> _distinct(["reward", "brief", "reward"])
    ['reward-1', 'brief', 'reward-2']
    """
    counts, seen = Counter(names), Counter()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(name if counts[name] == 1 else f"{name}-{seen[name]}")
    return distinct


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
