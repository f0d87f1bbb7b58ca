"""Where scores come from: reward models and Python functions, weighted, by TRL's GRPO contract.

A function is called as `f(prompts=..., completions=..., completion_ids=..., **columns)`, one entry a completion, and
returns a list of numbers; `None` means "no opinion on this one". It may be a coroutine. For a conversational prompt a
completion is `[{"role": "assistant", "content": ...}]`, for a text prompt a string. A reward model is an
`AutoModelForSequenceClassification` with one label; it reads the text, so that it may have a tokenizer of its own.
Several of them can be one reward (`models.ensemble.Ensemble`). Both can be named: a model by its hub id or folder, a
function as `package.module:function`.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
import math
import numbers
import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any, NamedTuple

import numpy
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.chat import encode_prompt, encoding
from rlhf_kit.data.prompts import handed_on
from rlhf_kit.errors import UserError, each
from rlhf_kit.models.checkpoints import check_scorer, check_vocabulary, load_config, load_reward_model, load_tokenizer
from rlhf_kit.models.dropout import disable_dropout
from rlhf_kit.models.ensemble import Ensemble
from rlhf_kit.models.forward import context_length, unwrapped
from rlhf_kit.models.heads import check_head, fit_context, row_format, score_texts
from rlhf_kit.models.weights import is_here, origin, pinned, refuse_not_finite, short_name
from rlhf_kit.references import load_reference

logger = logging.getLogger(__name__)
RewardFunc = str | PreTrainedModel | PeftModel | Ensemble | Callable
MODELS = (PreTrainedModel, PeftModel)
FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
GIVEN = ("prompts", "completions", "completion_ids")  # what a function gets besides the columns


def read_rewards(
    funcs: RewardFunc | list[RewardFunc],
    ensemble: str | None = None,
    std_coef: float | None = None,
    value_model: object = "shared",
) -> list[RewardFunc]:
    """`reward_funcs` as a list, functions that are named imported; no model is loaded.

    Args:
        ensemble, std_coef: how all reward models are to be one reward, as for `Rewards`. value_model: of PPO.

    Raises:
        UserError: with every name that does not resolve; for an ensemble that makes no sense.
    """
    funcs = list(funcs) if isinstance(funcs, list | tuple) else [funcs]
    if not funcs:
        raise UserError("reward_funcs is empty; give a reward model's folder or a function.")
    funcs = each(resolve_reward, funcs)
    if std_coef is not None and ensemble != "mean-std":
        raise UserError("reward_ensemble_std_coef applies to reward_ensemble='mean-std' only.")
    if ensemble is not None:
        _check_ensemble(ensemble, funcs, value_model)
    return funcs


def resolve_reward(func: RewardFunc | os.PathLike) -> RewardFunc:
    """`package.module:function` as the function; models, their ids and folders, and functions as they are.

    The current folder is searched too. Raises UserError: no such module or function, or no function.
    """
    func = str(func) if isinstance(func, os.PathLike) else func
    if not isinstance(func, str) or not FUNCTION.fullmatch(func):
        return func
    function = load_reference(func, "reward_funcs")
    if not callable(function):
        raise UserError(f"reward_funcs {func!r} is a {type(function).__name__}, not a function.")
    return function


def check_functions(funcs: list[RewardFunc], columns: Iterable[str]) -> None:
    """Refuse functions that do not take what a trainer gives them of rows with these columns; all of them at once."""
    arguments = [*GIVEN, *handed_on(columns), "trainer_state"]
    functions = [func for func in funcs if not isinstance(func, (str, *MODELS, Ensemble))]
    each(lambda function: check_signature(_name(function), function, arguments), functions)


def _check_ensemble(reduce: str, funcs: list[RewardFunc], value_model: object) -> None:
    names = [func for func in funcs if isinstance(func, str)]
    if any(isinstance(func, (*MODELS, Ensemble)) for func in funcs):
        raise UserError(
            "reward_ensemble takes reward models by folder or hub id; of models in memory make a "
            "`rlhf_kit.models.ensemble.Ensemble`, and give that as a reward."
        )
    if len(names) < 2:
        raise UserError(f"reward_ensemble {reduce} needs at least two reward models; reward_funcs names {len(names)}.")
    if len(set(names)) < len(names):
        raise UserError("reward_ensemble: reward_funcs names a reward model twice; name each model once.")
    if isinstance(value_model, str) and value_model == "reward":
        raise UserError(
            "value_model 'reward' starts from one reward model, and reward_ensemble has several. Give value_model "
            "'shared', 'separate', or the folder of one of them."
        )


class Reader(NamedTuple):
    """A reward model and the tokenizer that it reads with."""

    name: str
    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase


class Rewards:
    """The weighted sum of several rewards.

    Args:
        funcs: reward models, their hub ids or folders, ensembles of them, functions or their names; one or a list.
        tokenizers: one a function, None where the policy's serves (or for an ensemble or a Python function).
        weights: one a function; None for 1.0 each.
        batch_size: completions a forward of a reward model.
        ensemble: "mean", "min" or "mean-std" make all reward models, given by name, one reward in the place of the
            first. std_coef: how much of their standard deviation "mean-std" takes off; None for 1.0.
        device_map: "meta" for models without weights.
    """

    def __init__(
        self,
        funcs: RewardFunc | list[RewardFunc],
        tokenizers: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None,
        weights: list[float] | None,
        policy_tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        *,
        ensemble: str | None = None,
        std_coef: float | None = None,
        device_map: str | None = None,
    ):
        self.funcs = read_rewards(funcs, ensemble, std_coef)
        if ensemble is not None:
            if tokenizers is not None:
                raise UserError("reward_processing_classes: the models of reward_ensemble use their own tokenizers.")
            names = [func for func in self.funcs if isinstance(func, str)]
            options = {"reduce": ensemble, "std_coef": 1.0 if std_coef is None else std_coef}
            judge = Ensemble.from_pretrained(names, device_map, batch_size=batch_size, **options)
            self.funcs = [judge if func == names[0] else func for func in self.funcs if func not in names[1:]]
        self.tokenizers = list(tokenizers) if isinstance(tokenizers, list | tuple) else [tokenizers] * len(self.funcs)
        self.weights = [1.0] * len(self.funcs) if weights is None else list(weights)
        for option, entries in (("reward_processing_classes", self.tokenizers), ("reward_weights", self.weights)):
            if len(entries) != len(self.funcs):
                raise UserError(f"{option} has {len(entries)} entries for {len(self.funcs)} reward functions.")
        self.batch_size = batch_size
        self.disagreement: Tensor | None = None  # (B,) of the last call: std over the members of the ensemble
        self.names = _distinct([_name(func) for func in self.funcs])
        self.funcs = [pinned("a reward model", func) if isinstance(func, str) else func for func in self.funcs]
        named = [func for func in self.funcs if isinstance(func, str)]
        each(lambda name: check_scorer(name, load_config(name, what="a reward model")), named)
        for i, func in enumerate(self.funcs):
            if isinstance(func, str):
                self.tokenizers[i] = self.tokenizers[i] or load_tokenizer(func, needs_eos=False)
                self.funcs[i] = load_reward_model(func, tokenizer=self.tokenizers[i], device_map=device_map)
            if isinstance(self.funcs[i], MODELS):
                check_head(self.funcs[i], self.names[i])
                self.tokenizers[i] = self.tokenizers[i] or _own_tokenizer(self.funcs[i], policy_tokenizer)
        for name, model, tokenizer in self.readers:
            refuse_not_finite(model, name)
            check_vocabulary(model.config._name_or_path, tokenizer, model)
            disable_dropout(model.eval().requires_grad_(False))

    @classmethod
    def looked_at(
        cls,
        funcs: list[str | Callable],
        weights: list[float] | None,
        policy_tokenizer: PreTrainedTokenizerBase,
        ensemble: str | None = None,
        std_coef: float | None = None,
    ) -> Rewards:
        """Rewards whose models have no weights, for a dry run; `unseen` stands for those not on this machine."""
        here = [callable(func) or is_here("a reward model", func) for func in funcs]
        if ensemble is not None and not all(here):
            funcs, ensemble, std_coef = [*filter(callable, funcs), unseen], None, None
        else:
            funcs = [func if there else unseen for func, there in zip(funcs, here, strict=True)]
        options = {"ensemble": ensemble, "std_coef": std_coef, "device_map": "meta"}
        return cls(funcs, None, weights, policy_tokenizer, 1, **options)

    @property
    def readers(self) -> list[Reader]:
        """All reward models by name, each with its tokenizer, those of ensembles included."""
        readers = []
        for name, func, tokenizer in zip(self.names, self.funcs, self.tokenizers, strict=True):
            if isinstance(func, MODELS):
                readers.append(Reader(name, func, tokenizer))
            elif isinstance(func, Ensemble):
                readers += [Reader(name, *pair) for pair in zip(func.models, func.tokenizers, strict=True)]
        return readers

    @property
    def models(self) -> list[PreTrainedModel | PeftModel]:
        """All reward models, those of ensembles included."""
        return [reader.model for reader in self.readers]

    def check(self, rows: list[dict], max_completion_length: int, **extra) -> None:
        """Raise UserError, before anything is sampled, for prompts that a reward model or function cannot take.

        Args:
            rows: with `prompt` and what columns there are. extra: what `__call__` will get besides.
        """
        columns = handed_on(rows[0])
        for name, func in zip(self.names, self.funcs, strict=True):
            if not isinstance(func, (*MODELS, Ensemble)):
                check_signature(name, func, [*GIVEN, *columns, *extra])
        for name, model, tokenizer in self.readers:
            cut = prompts_cut(name, model, tokenizer, rows, max_completion_length)
            if cut:
                logger.warning(
                    "Reward model %r reads %d tokens: %d of %d prompts lose their beginning to a completion of %d.",
                    name, context_length(unwrapped(model).config), cut, len(rows), max_completion_length,
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
        given = prompts, completions, completion_ids, columns
        parts = {name: self.part(at, *given, **extra) for at, name in enumerate(self.names)}
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

    def part(
        self,
        at: int,
        prompts: list,
        completions: list[str],
        completion_ids: list[list[int]],
        columns: dict[str, list],
        **extra,
    ) -> Tensor:
        """The scores of reward number `at` alone, unweighted, NaN where it had none. -> (B,).

        Raises UserError, naming the function and the sample, when a score is NaN, or they are ill-counted.
        """
        name, func = self.names[at], self.funcs[at]
        if isinstance(func, MODELS):
            return score_texts(func, self.tokenizers[at], prompts, completions, self.batch_size)
        if isinstance(func, Ensemble):
            members = func.member_scores(prompts, completions)  # (M, B)
            self.disagreement = members.std(0, correction=0)
            return func.combine(members)
        spoken = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, completions, strict=True)
        ]
        # Copies: what a function does to them is not done to the run's prompts, nor to the next function's.
        arguments = copy.deepcopy(dict(zip(GIVEN, (prompts, spoken, completion_ids), strict=True)) | columns)
        return read_scores(name, call(name, func, arguments | extra), completions)


def unseen(**arguments) -> None:
    """Stands for a reward model that is not on this machine."""


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
    name: str,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    longest: int,
) -> int:
    """How many rows' prompts lose their beginning in the reward model's context beside a completion of `longest`.

    Raises UserError where the context does not hold the completion, or the model's template does not take a prompt.
    """
    config = unwrapped(model).config
    limit, form = context_length(config), row_format(config, tokenizer)
    room = form.room(limit)
    if not room.holds(longest):
        raise UserError(
            f"Reward model {name!r}: a completion of max_completion_length {room.lacks(longest)}. Its end is what is "
            "judged, and would be cut. Lower max_completion_length."
        )
    completion, cut = [0] * longest, 0
    try:
        for ids in encoding(rows, lambda row, _: encode_prompt(tokenizer, row["prompt"])):
            read, whole = (fit_context(ids, completion, most, form) for most in (limit, None))
            cut += len(read) < len(whole)
    except UserError as error:
        raise UserError(f"Reward model {name!r} cannot read the prompts: {error}") from error
    return cut


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


# --- Python functions -----------------------------------------------------------------------------------------------


def check_signature(name: str, func: Callable, given: list[str]) -> None:
    """Raise UserError where `func` cannot be called with these names; nothing is called."""
    if not callable(func):
        raise UserError(f"reward_funcs has {_told(func)}; give a reward model's folder or a function.")
    try:
        signature = inspect.signature(func.forward if isinstance(func, nn.Module) else func)
    except (TypeError, ValueError):  # written in C
        return
    try:
        signature.bind(**dict.fromkeys(given))
    except TypeError as error:
        raise UserError(
            f"Reward function {name!r} cannot be called with the trainer's arguments: {error}. It is called as {name}("
            f"{', '.join(f'{item}=...' for item in given)}); let it take **kwargs for what it does not read, and give "
            "the prompts a column for what it lacks."
        ) from error


def call(name: str, func: Callable, given: dict[str, Any]) -> Any:
    """What the function returns, or its coroutine. Raises UserError with a sample, whatever it raises."""
    try:
        result = func(**given)
        return _waited(result) if inspect.isawaitable(result) else result
    except Exception as error:
        first = given["prompts"][0]
        raise UserError(
            f"Reward function {name!r} raised {type(error).__name__}: {error}. It was given "
            f"{len(given['prompts'])} completions, the first {given['completions'][0]!r} to the prompt {first!r}."
        ) from error


def _waited(awaitable: Awaitable) -> Any:
    async def wait() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    with ThreadPoolExecutor(1) as another:  # a notebook's own loop runs in this thread
        return another.submit(asyncio.run, wait()).result()


def read_scores(name: str, returned: Any, completions: list[str]) -> Tensor:
    """One number per completion, NaN where there is none. (B,) float32.

    A list, a tuple or an array (B,) or (B, 1) of numbers or None is taken. Raises UserError for anything else, which
    is told, and for a NaN, an infinity or what float32 cannot hold.
    """
    needed = f"give one number per completion, a list of {len(completions)} (None: no opinion)"
    values = _listed(returned)
    if values is None:
        raise UserError(f"Reward function {name!r} returned {_told(returned)}; {needed}.")
    if len(values) != len(completions):
        raise UserError(
            f"Reward function {name!r} returned {len(values)} scores for {len(completions)} completions; {needed}."
        )
    scores = []
    for value, completion in zip(values, completions, strict=True):
        number = math.nan if value is None else _number(value)
        if number is None or value is not None and not abs(number) <= torch.finfo(torch.float32).max:
            raise UserError(
                f"Reward function {name!r} returned {_told(value)} for the completion {completion!r}; {needed}."
            )
        scores.append(number)
    return torch.tensor(scores)


def _listed(returned: Any) -> list | None:
    if isinstance(returned, list | tuple):
        return list(returned)
    if not isinstance(returned, Tensor) and not hasattr(returned, "__array__"):
        return None
    try:
        # `asanyarray`: of a masked array what is masked is no opinion.
        array = returned.detach().cpu() if isinstance(returned, Tensor) else numpy.asanyarray(returned)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        return array.tolist() if array.ndim == 1 else None
    except (RuntimeError, NotImplementedError, TypeError, ValueError):  # sparse, quantized, without storage
        return None


def _number(value: Any) -> float | None:
    """A number of Python, numpy or torch (of one element) as a float; None for anything else."""
    if isinstance(value, Tensor | numpy.ndarray) and math.prod(value.shape) == 1:
        value = value.item()
    if not isinstance(value, numbers.Real | Decimal | numpy.bool_):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _told(value: Any) -> str:
    """What a value is, in a few words.

    >>> _told(None), _told(1.0), _told("good"), _told({"a": 1}), _told([1]), _told(x for x in ())
    ('nothing', 'the number 1.0', "the text 'good'", 'a dict', 'a list', 'a generator')
    """
    if value is None:
        return "nothing"
    if isinstance(value, str | bytes):
        return f"the text {value[:40]!r}"
    if isinstance(value, Tensor | numpy.ndarray) and math.prod(value.shape) != 1:
        return f"an array of shape {tuple(value.shape)}"
    number = _number(value)
    if number is not None and not math.isfinite(number):
        return str(number)
    if number is not None or isinstance(value, numbers.Number):
        return f"the number {value}"
    kind = type(value).__name__
    return f"a{'n' * (kind[0].lower() in 'aeiou')} {kind}"
