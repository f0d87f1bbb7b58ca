"""The one loop over tokens, for any reader of rows and any choice of the next tokens.

reader    `sampling`: `Cached` or `Anew`, a row a text        `decoding`: `Leaves`, many places of one cached row
chooser   `sampling`: draws, and keeps log-probs and values   `decoding`: greedy or beam search, to a stop string
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor


class Begun(NamedTuple):
    """Rows that take the places of others, which have ended, or come behind the last one."""

    places: Tensor  # (N,)
    prompts: list[list[int]]


class Step(NamedTuple):
    """What rows go on with, one token each."""

    tokens: Tensor  # (M,)
    rows: Tensor | None = None  # (M,) the rows that go on, the others have ended; None: all of them
    begun: Begun | None = None  # of those that go on, some become others: their tokens are the last of the prompts


class Reader(Protocol):
    """What is read of rows so far. The kind of step is the chooser's: a `Step`, or leaves of a search."""

    def read(self) -> tuple[Tensor, Tensor | None]:
        """Logits that predict the next tokens, and the states that they come from, where these are asked for."""

    def write(self, step) -> None:
        """Append the tokens of a step to the rows that continue, drop the others, and begin those that are new."""


def write_on(reader: Reader, choose: Callable) -> None:
    """Read, choose, write, until `choose(logits, states)` has no step more: None."""
    step = choose(*reader.read())
    while step is not None:
        reader.write(step)
        step = choose(*reader.read())
