"""Items as a model gets them: shots and question, in plain text or in turns, that its context has room for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from transformers import PreTrainedTokenizerBase

from rlhf_kit.data.chat import Message, encode_completion, lead_ids
from rlhf_kit.data.refusals import TemplateRefusal
from rlhf_kit.errors import UserError
from rlhf_kit.eval.icl.tasks import Example, Task, draw_shots, messages, render
from rlhf_kit.generation.generators import encode_begun, encode_behind, encode_messages
from rlhf_kit.generation.likelihood import Request, room_before
from rlhf_kit.models.room import Room


@dataclass(frozen=True)
class Asked:
    """One item as the model gets it. `shown`: shots that fitted, of those wanted."""

    id: str
    task: Task
    number: int
    prompt: str
    ids: list[int]
    choices: list[list[int]]
    shown: int
    wanted: int

    @property
    def example(self) -> Example:
        return self.task.examples[self.number]


class Prompts:
    """Makes prompts of tasks.

    Args:
        context: tokens that the model reads at once; None = any number.
        chat: in turns by the tokenizer's chat template (`generators.layout`), not in plain text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int | None, chat: bool = False):
        self.tokenizer, self.context, self.chat = tokenizer, context, chat

    def ask(self, id: str, task: Task, number: int, wanted: int, seed: int) -> Asked:
        """Item `number` of a task behind up to `wanted` shots; the first are left out where there is no room.

        Raises UserError where the question alone has none, or the template refuses it.
        """
        try:
            return self._ask(id, task, number, wanted, seed)
        except TemplateRefusal as refusal:
            raise UserError(f"{id}: {refusal} Ask in plain text.") from refusal

    def _ask(self, id: str, task: Task, number: int, wanted: int, seed: int) -> Asked:
        example, drawn = task.examples[number], draw_shots(task, number, wanted, seed)

        @cache
        def put(shown: int) -> tuple[str, list[int], list[list[int]]]:
            return self._put(task, drawn[len(drawn) - shown :], example)

        def room(shown: int) -> Room:
            *_, choices = put(shown)
            return room_before(choices, self.context) if choices else Room(self.context, new_tokens, "the answer")

        def has_no_room(shown: int) -> bool:
            return not room(shown).holds(len(put(shown)[1]))

        shown, new_tokens = wanted, task.max_new_tokens
        if has_no_room(wanted):
            shown = bisect_left(range(wanted), True, key=has_no_room) - 1
            if shown < 0:
                raise UserError(f"{id}: the question alone {room(0).lacks(len(put(0)[1]))}. Leave the task out.")
        return Asked(id, task, number, *put(shown), shown, wanted)

    def cue(self, task: Task, example: Example) -> Request:
        """The example's choices behind the task's cue alone."""
        if self.chat:
            return Request(*self._in_turns([{"role": "user", "content": task.cue}], example))
        return Request(*encode_behind(self.tokenizer, task.cue, example.choices))

    def _put(self, task: Task, shots: Sequence[Example], example: Example) -> tuple[str, list[int], list[list[int]]]:
        """A prompt as text and as the model gets it, and the choices as they stand behind it."""
        if self.chat:
            ids, choices = self._in_turns(messages(task, shots, example), example)
            return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False), ids, choices
        text = render(task, shots, example)
        if not example.choices:
            return text, encode_begun(self.tokenizer, text), []
        return text, *encode_behind(self.tokenizer, text, example.choices)

    def _in_turns(self, asked: Sequence[Message], example: Example) -> tuple[list[int], list[list[int]]]:
        """Prompt and choices apart, as SFT trains on them: a turn is encoded by itself."""
        lead = len(lead_ids(self.tokenizer))
        choices = [encode_completion(self.tokenizer, choice, eos=False)[lead:] for choice in example.choices]
        return encode_messages(self.tokenizer, asked), choices
