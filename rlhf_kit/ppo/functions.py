"""Rewards that are Python functions: how they are called, and what they return read as one number a completion."""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from rlhf_kit.errors import UserError

GIVEN = ("prompts", "completions", "completion_ids")  # what a function gets besides the columns


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
            f"Reward function {name!r} does not take what it is given: {error}. It is called as {name}("
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
    """One number a completion, NaN where there is none. (B,) float32.

    A list, a tuple or an array (B,) or (B, 1) of numbers or None is taken. Raises UserError for anything else, which
    is told, and for a NaN, an infinity or what float32 cannot hold.
    """
    needed = f"give one number a completion, a list of {len(completions)} (None: no opinion)"
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
