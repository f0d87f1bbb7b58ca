"""Questions as a model gets them: with shots before them, in plain text or in turns, in the room it has."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_kit.errors import UserError
from rlhf_kit.generation.generators import encode_begun, encode_behind, encode_messages
from rlhf_kit.generation.likelihood import Request, room_before
from rlhf_kit.hashes import text_hash
from rlhf_kit.models.room import Room


def draw(pool: Sequence[Any], count: int, row: Any, seed: int) -> list[Any]:
    """Shots for a row, which is none of them: decided by its id and the seed. Raises UserError for too few."""
    if len(pool) <= count and count > sum(other.id != row.id for other in pool):
        raise UserError(f"--shots {count} are more than the {len(pool)} demonstrations.")
    numbers = random.Random(int(text_hash(f"{row.id}\x1f{seed}"), 16))
    drawn = numbers.sample(pool, min(count + 1, len(pool)))
    return [other for other in drawn if other.id != row.id][:count]


def fit(
    encode: Callable[[Sequence[Any]], list[int]], shots: Sequence[Any], row: Any, context: int | None, new_tokens: int
) -> tuple[list[int], int]:
    """Ids of a row behind the last shots that leave room for what follows, and their number.

    Raises UserError where the row alone has no room.
    """
    room = Room(context, new_tokens, "the answer")
    for dropped in range(len(shots) + 1):
        ids = encode([*shots[dropped:], row])
        if room.holds(len(ids)):
            return ids, len(shots) - dropped
    raise UserError(f"it {room.lacks(len(ids))}.")


def encode_questions(
    tokenizer: PreTrainedTokenizerBase, instruction: str, questions: Sequence[str], answers: Sequence[str], chat: bool
) -> list[int]:
    """Ids of an instruction, questions with their answers, and a last question without one.

    In plain text each answer stands behind `Answer:`; in turns the assistant says it. Raises TemplateRefusal.
    """
    if not chat:
        shots = [f"{question}\n\nAnswer: {answer}" for question, answer in zip(questions[:-1], answers, strict=True)]
        return encode_begun(tokenizer, "\n\n".join([instruction, *shots, f"{questions[-1]}\n\nAnswer:"]))
    turns = [f"{instruction}\n\n{questions[0]}", *questions[1:]]
    order = [text for pair in zip(turns, [*answers, ""], strict=True) for text in pair][:-1]
    roles = ("user", "assistant")
    return encode_messages(tokenizer, [{"role": roles[at % 2], "content": text} for at, text in enumerate(order)])


def choices_behind(
    tokenizer: PreTrainedTokenizerBase, prompt: str, choices: Sequence[str], context: int | None
) -> Request:
    """Raises UserError where the longest choice has no room behind the prompt, or the tokenizer drops one."""
    ids, continuations = encode_behind(tokenizer, prompt, choices)
    room = room_before(continuations, context)
    if not room.holds(len(ids)):
        raise UserError(f"it {room.lacks(len(ids))}.")
    return Request(ids, continuations)
