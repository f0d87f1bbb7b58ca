"""The one exception a user is meant to read, and its hint "Did you mean ...?"."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any


class UserError(ValueError):
    """A mistake in the input: the message says what was given, what is needed and what to do.

    The command line prints it without a traceback and exits with `status`.
    """

    status = 2


class HubUnreachableError(UserError):
    """What may be on the Hugging Face hub could not be asked for. A dry run goes on without it and says so."""


class NotFiniteError(UserError):
    """Training came to a NaN or an infinity: the message names the tensor and the optimizer step."""

    status = 1


def each(check: Callable[[Any], Any], items: Iterable) -> list:
    """`check(item)` of every item. Raises UserError with what is wrong with all of them."""
    values, faults = [], []
    for item in items:
        try:
            values.append(check(item))
        except HubUnreachableError:
            raise
        except UserError as error:
            faults.append(error)
    if faults:
        raise faults[0] if len(faults) == 1 else UserError("\n".join(map(str, faults)))
    return values


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the option nearest to `word`, or an empty string when none is near."""
    near = difflib.get_close_matches(word, list(options), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
