"""Where scores come from: reward models and Python functions, weighted, by TRL's GRPO contract.

A function is called as `f(prompts=..., completions=..., completion_ids=..., **columns)`, one entry a completion, and
returns a list of numbers; `None` means "no opinion on this one". It may be a coroutine. For a conversational prompt a
completion is `[{"role": "assistant", "content": ...}]`, for a text prompt a string. A reward model is an
`AutoModelForSequenceClassification` with one label; it reads the text, so that it may have a tokenizer of its own.
Several of them can be one reward (`models.ensemble.Ensemble`).
"""

from __future__ import annotations

import copy
import logging
import os
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.chat import encode_prompt
from rlhf_kit.data.prompts import handed_on
from rlhf_kit.data.refusals import encode_each
from rlhf_kit.errors import UserError, each
from rlhf_kit.models.checkpoints import (
    check_scorer,
    check_vocabulary,
    context_length,
    load_config,
    load_reward_model,
    load_tokenizer,
)
from rlhf_kit.models.dropout import disable_dropout
from rlhf_kit.models.ensemble import Ensemble
from rlhf_kit.models.heads import check_head, fit_context, row_format, score_texts, unwrapped
from rlhf_kit.models.weights import origin, pinned, refuse_not_finite, short_name
from rlhf_kit.ppo.functions import GIVEN, call, check_signature, read_scores

logger = logging.getLogger(__name__)
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
        self.funcs = [str(func) if isinstance(func, os.PathLike) else func for func in self.funcs]
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
        self.funcs = [pinned("a reward model", func) if isinstance(func, str) else func for func in self.funcs]
        named = [func for func in self.funcs if isinstance(func, str)]
        each(lambda name: check_scorer(name, load_config(name, what="a reward model")), named)
        for i, func in enumerate(self.funcs):
            if isinstance(func, str):
                self.tokenizers[i] = self.tokenizers[i] or load_tokenizer(func, needs_eos=False)
                self.funcs[i] = load_reward_model(func, tokenizer=self.tokenizers[i])
            if isinstance(self.funcs[i], MODELS):
                check_head(self.funcs[i], self.names[i])
                self.tokenizers[i] = self.tokenizers[i] or _own_tokenizer(self.funcs[i], policy_tokenizer)
        for name, model, tokenizer in self.readers:
            refuse_not_finite(model, name)
            check_vocabulary(model.config._name_or_path, tokenizer, model)
            disable_dropout(model.eval().requires_grad_(False))

    @property
    def readers(self) -> list[tuple[str, PreTrainedModel | PeftModel, PreTrainedTokenizerBase]]:
        """All reward models by name, each with its tokenizer, those of ensembles included."""
        readers = []
        for name, func, tokenizer in zip(self.names, self.funcs, self.tokenizers, strict=True):
            if isinstance(func, MODELS):
                readers.append((name, func, tokenizer))
            elif isinstance(func, Ensemble):
                readers += [(name, *pair) for pair in zip(func.models, func.tokenizers, strict=True)]
        return readers

    @property
    def models(self) -> list[PreTrainedModel | PeftModel]:
        """All reward models, those of ensembles included."""
        return [model for _, model, _ in self.readers]

    def check(self, rows: list[dict], max_completion_length: int, **extra) -> None:
        """Raise UserError, before anything is sampled, for prompts that a reward model or function cannot take.

        Args:
            rows: with `prompt` and what columns there are. extra: what `__call__` will get besides.
        """
        columns = handed_on(rows[0])
        for name, func in zip(self.names, self.funcs, strict=True):
            if not isinstance(func, (*MODELS, Ensemble)):
                check_signature(name, func, [*GIVEN, *columns, *extra])
        prompts = [row["prompt"] for row in rows]
        for name, model, tokenizer in self.readers:
            cut = prompts_cut(name, model, tokenizer, prompts, max_completion_length)
            if cut:
                logger.warning(
                    "Reward model %r reads %d tokens: %d of %d prompts lose their beginning to a completion of %d.",
                    name, context_length(unwrapped(model).config), cut, len(prompts), max_completion_length,
                )  # fmt: skip

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
                # Copies: what a function does to them is not done to the run's prompts, nor to the next function's.
                arguments = copy.deepcopy(dict(zip(GIVEN, (prompts, spoken, completion_ids), strict=True)) | columns)
                parts[name] = read_scores(name, call(name, func, arguments | extra), completions)
        stacked = torch.stack(list(parts.values()))  # (functions, B)
        nobody = stacked.isnan().all(0)
        if nobody.any():
            row = int(nobody.nonzero()[0])
            raise UserError(f"No reward function scored this completion: {completions[row]!r}.")
        scores = (torch.tensor(self.weights)[:, None] * stacked).nansum(0)
        if not scores.isfinite().all():
            raise UserError(
                f"The rewards {', '.join(map(repr, parts))} by reward_weights={self.weights} are more than float32 "
                "holds; lower them."
            )
        return scores, parts


def _own_tokenizer(
    model: PreTrainedModel | PeftModel, policy_tokenizer: PreTrainedTokenizerBase
) -> PreTrainedTokenizerBase:
    """Of the folder or hub id that the model says it came from, as for GRPO; made in memory it has the policy's."""
    name = origin(model)
    if not name:
        return policy_tokenizer
    try:
        return load_tokenizer(name, needs_eos=False)
    except UserError as error:
        raise UserError(f"{error} Or give the reward model's tokenizer: reward_processing_classes.") from error


def prompts_cut(
    name: str, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, prompts: list, longest: int
) -> int:
    """How many prompts lose their beginning in the reward model's context beside a completion of `longest` tokens.

    Raises UserError where the context does not hold the completion, or the model's template does not take a prompt.
    """
    config = unwrapped(model).config
    limit, form = context_length(config), row_format(config, tokenizer)
    room = None if limit is None else limit - len(fit_context([], [], None, form))
    if room is not None and longest > room:
        raise UserError(
            f"Reward model {name!r} reads {room} tokens, and a completion may have max_completion_length={longest}: "
            "its end is what is judged, and would be cut. Lower max_completion_length."
        )
    try:
        ids = encode_each(prompts, partial(encode_prompt, tokenizer))
    except UserError as error:
        raise UserError(f"Reward model {name!r} cannot read the prompts: {error}") from error
    completion = [0] * longest
    whole, read = ([fit_context(row, completion, most, form) for row in ids] for most in (None, limit))
    return sum(len(a) < len(b) for a, b in zip(read, whole, strict=True))


def _name(func: RewardFunc) -> str:
    if isinstance(func, (str, *MODELS)):
        return short_name(func) or "reward_model"
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
