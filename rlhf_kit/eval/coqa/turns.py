"""CoQA's turns as prompts, and the answers of a causal LM to all of them.

Plain layout (GPT-3, figure G.18): the story, then `Q: ...` and `A: ...` of each turn before, then the question and
`A:`, with empty lines between; demonstrations stand before it, as the story and its dialogue do.

Chat layout: the story and the first question are what the user says first, each further question another turn, the
answers are the assistant's. Demonstrations are earlier turns of the same conversation, each story with its first
question (as lm-evaluation-harness's `fewshot_as_multiturn` has it).
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.chat import Message
from rlhf_kit.data.coqa import Story
from rlhf_kit.data.refusals import TemplateRefusal, refused_rows
from rlhf_kit.errors import UserError
from rlhf_kit.generation.decoding import Continuation, Decoding, Dialogues, continuations
from rlhf_kit.generation.generators import encode_begun, encode_messages
from rlhf_kit.models.room import Room

# GPT-2 (section 3.5) decodes greedily, GPT-3 (section 2.4) with 4 beams and 0.6. Neither says how an answer ends.
PRESETS = {
    "gpt2": Decoding(max_new_tokens=32),
    "gpt3": Decoding(max_new_tokens=32, num_beams=4, length_penalty=0.6),
}


@dataclass(frozen=True)
class Prompt:
    """A turn as the model gets it. `dropped`: turns of the history, the oldest, that had no room."""

    text: str
    ids: list[int]
    dropped: int


@dataclass(frozen=True)
class Answered:
    """An answer to a turn (from 0) of a story."""

    story: Story
    turn: int
    prompt: Prompt
    continuation: Continuation


class Prompts:
    """Makes prompts that leave room for an answer.

    Args:
        context: tokens that the model reads at once; None = any number.
        new_tokens: of them kept free for the answer.
        chat: in turns by the tokenizer's chat template (`generators.layout`), not in plain text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int | None, new_tokens: int, chat: bool = False):
        self.tokenizer, self.chat = tokenizer, chat
        self.room = Room(context, new_tokens, "the answer")
        self.demonstrations: dict[str, list[Story]] = {}  # by story, as packed

    def prompt(self, story: Story, turn: int, answers: Sequence[str]) -> Prompt:
        """The prompt of a turn (from 0), given the answers to all before it; `check` the story first."""
        before = self.demonstrations.get(story.id, [])
        for dropped in range(turn + 1):
            kept = replace(story, questions=story.questions[dropped : turn + 1])
            text, ids = self._put([*before, kept], answers[dropped:turn])
            if self.room.holds(len(ids)):
                break
        return Prompt(text, ids, dropped)

    def check(self, stories: Iterable[Story]) -> None:
        """Raises UserError where the template refuses a dialogue or a story with a question has no room: all such."""
        sizes, refusals, stories = {}, {}, list(stories)
        for story in stories:
            alone = [replace(story, questions=(question,)) for question in story.questions]
            try:
                sizes[repr(story.id)] = max(len(self._put([one], [])[1]) for one in alone)
                self._longest([], story)
            except TemplateRefusal as refusal:
                refusals[story.id] = refusal
        if refusals:
            raise UserError(f"{refused_rows(refusals, len(stories))} Or ask in plain text.")
        self.room.check(sizes, "stories with a question", "Remove them, or give a model with a longer context.")

    def demonstrate(self, story: Story, pool: Sequence[Story], shots: int, seed: int) -> None:
        """Give a story up to `shots` demonstrations: whole ones, and of the first that has no room its first turns.

        The room is what the story with its whole dialogue leaves. The draw depends on story, shots and seed alone.
        """
        key = "\x1f".join(("coqa", story.id, str(shots), str(seed)))
        draw = random.Random(hashlib.sha256(key.encode()).digest())
        others = [other for other in pool if other.id != story.id]
        packed: list[Story] = []

        def fits(before: Sequence[Story]) -> bool:
            return self.room.holds(len(self._longest(before, story)))

        for other in draw.sample(others, min(shots, len(others))):
            parts = [_first(other, turns) for turns in range(1, len(other.questions) + 1)]
            fitting = bisect_left(parts, True, key=lambda part: not fits([*packed, part]))
            packed += parts[:fitting][-1:]
            if fitting < len(parts):
                break
        self.demonstrations[story.id] = packed

    def _longest(self, before: Sequence[Story], story: Story) -> list[int]:
        """A story with its whole dialogue behind demonstrations."""
        return self._put([*before, story], gold(story))[1]

    def _put(self, stories: Sequence[Story], answers: Sequence[str]) -> tuple[str, list[int]]:
        """Stories with their dialogues, the last one's with these answers, as text and as the model gets them."""
        if self.chat:
            ids = encode_messages(self.tokenizer, messages(stories, answers))
            return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False), ids
        text = layout(stories, answers)
        return text, encode_begun(self.tokenizer, text)


def gold(story: Story) -> list[str]:
    """The first reference of every turn."""
    return [references[0] for references in story.answers]


def _first(story: Story, turns: int) -> Story:
    return replace(story, questions=story.questions[:turns], answers=story.answers[:turns])


def layout(stories: Sequence[Story], answers: Sequence[str]) -> str:
    """Stories with their dialogues: the last one's with these answers, those before with the references.

    A question without an answer ends in `A:`.
    """
    histories = [*map(gold, stories[:-1]), answers]
    parts = []
    for story, replies in zip(stories, histories, strict=True):
        turns = zip_longest(story.questions, replies, fillvalue="")
        parts += [story.text, *(f"Q: {question}\n\nA: {answer}".rstrip() for question, answer in turns)]
    return "\n\n".join(parts)


def messages(stories: Sequence[Story], answers: Sequence[str]) -> list[Message]:
    """The same as turns of a user, who tells a story with its first question, and of the assistant."""
    histories = [*map(gold, stories[:-1]), answers]
    turns = []
    for story, replies in zip(stories, histories, strict=True):
        for turn, question in enumerate(story.questions):
            content = question if turn else f"{story.text}\n\n{question}"
            turns.append({"role": "user", "content": content})
            turns += [{"role": "assistant", "content": answer} for answer in replies[turn : turn + 1]]
    return turns


# --- answers --------------------------------------------------------------------------------------------------------


def answer_by_gold(
    model: PreTrainedModel, prompts: Prompts, stories: Sequence[Story], how: Decoding, max_batch_tokens: int
) -> Iterator[Answered]:
    """All turns, each after the references of those before; a story and its dialogue are read once."""
    turns = [(story, turn) for story in stories for turn in range(len(story.questions))]
    batch = [prompts.prompt(story, turn, gold(story)) for story, turn in turns]
    texts = continuations(model, prompts.tokenizer, [prompt.ids for prompt in batch], how, max_batch_tokens)
    for number, continuation in texts:
        yield Answered(*turns[number], batch[number], continuation)


def answer_by_own(
    model: PreTrainedModel, prompts: Prompts, stories: Sequence[Story], how: Decoding, max_batch_tokens: int
) -> Iterator[Answered]:
    """All turns, each after the model's own answers to those before; what was read is read on from."""
    for batch in _together(prompts, stories, how, max_batch_tokens):
        dialogues = Dialogues(model, prompts.tokenizer, how)
        answers: dict[str, list[str]] = {story.id: [] for story in batch}
        for turn in range(len(batch[0].questions)):
            going = [story for story in batch if turn < len(story.questions)]
            turn_prompts = [prompts.prompt(story, turn, answers[story.id]) for story in going]
            texts = dialogues.answer([prompt.ids for prompt in turn_prompts])
            for story, prompt, continuation in zip(going, turn_prompts, texts, strict=True):
                answers[story.id].append(continuation.answer)
                yield Answered(story, turn, prompt, continuation)


def _together(
    prompts: Prompts, stories: Sequence[Story], how: Decoding, max_batch_tokens: int
) -> Iterator[list[Story]]:
    """Stories of like length in batches; within one those with more turns first."""
    sizes = {}
    for story in stories:
        last = prompts.prompt(story, len(story.questions) - 1, gold(story))
        sizes[story.id] = len(last.ids) + (len(story.questions) + how.num_beams) * how.max_new_tokens
    order = sorted(stories, key=lambda story: -sizes[story.id])
    while order:
        count = max(1, max_batch_tokens // sizes[order[0].id])
        yield sorted(order[:count], key=lambda story: -len(story.questions))
        order = order[count:]
