"""The room of a prompt: what a model's context leaves it beside what is to follow, and one message where that is too
little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlhf_kit.errors import UserError

NAMED = 5  # of those too long, the most that a message names besides the longest


@dataclass(frozen=True)
class Room:
    """Tokens that a prompt may have.

    Attributes:
        context: tokens that the model reads at once (`forward.context_length`); None: any number.
        following: of them kept free for what follows, or stands around it.
        what: follows, by the name of its option where it has one: "max_completion_length".
    """

    context: int | None
    following: int
    what: str

    @property
    def tokens(self) -> int | None:
        """None: any number; below 0 where what follows is longer than the context by itself.

        >>> Room(8, 3, "answer").tokens, Room(None, 3, "answer").tokens
        (5, None)
        """
        return None if self.context is None else self.context - self.following

    def excess(self, tokens: int) -> int:
        """How many of so many tokens have no room."""
        return 0 if self.tokens is None else max(0, tokens - self.tokens)

    def holds(self, tokens: int) -> bool:
        return self.excess(tokens) == 0

    def lacks(self, tokens: int) -> str:
        """What a message says of something so long; what it is stands before, what to do behind.

        >>> Room(8, 3, "max_new_tokens").lacks(6)
        'has 6 tokens; the context of 8 less 3 for max_new_tokens leaves 5'
        """
        of_all = f"of {self.context} less {self.following} for {self.what} leaves {max(0, self.tokens)}"
        return f"has {tokens} tokens; the context {of_all if self.following else f'has {self.context}'}"

    def check(self, sizes: Mapping[str, int], things: str, advice: str, source: str = "") -> None:
        """Raise UserError where some things of `source`, their tokens by name such as "row 3", have no room."""
        longest = sorted((name for name in sizes if not self.holds(sizes[name])), key=lambda name: -sizes[name])
        if longest:
            first, *others = longest
            named = ", ".join(f"{name} ({sizes[name]} tokens)" for name in others[:NAMED])
            more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
            counts = f"{len(longest)} of {len(sizes)} {things} are too long"
            raise UserError(
                f"{source and f'{source}: '}{counts}. The longest, {first}, {self.lacks(sizes[first])}. "
                f"{named and f'Others: {named}{more}. '}{advice}"
            )
