"""Items as a model gets them: shots and question, in plain text or in turns, that its context has room for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlhf_kit.data.chat import encode_completion, lead_ids
from rlhf_kit.data.refusals import TemplateRefusal
from rlhf_kit.errors import UserError
from rlhf_kit.eval.generators import encode, encode_begun, encode_messages
from rlhf_kit.eval.icl_tasks import Example, Task, draw_shots, messages, render


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
        choices = [self._choice(choice) for choice in example.choices]
        # The last token of a choice is not read.
        new = max(map(len, choices)) - 1 if choices else task.max_new_tokens

        def put(shown: int) -> tuple[str, list[int]]:
            return self._put(task, drawn[len(drawn) - shown :], example)

        def size(shown: int) -> int:
            return len(put(shown)[1]) + new

        shown = wanted
        if self.context is not None and size(wanted) > self.context:
            shown = bisect_right(range(wanted), self.context, key=size) - 1
            if shown < 0:
                raise UserError(
                    f"{id}: the question alone is {size(0) - new} tokens, and {new} must follow; the model reads "
                    f"{self.context}. Leave the task out."
                )
        return Asked(id, task, number, *put(shown), choices, shown, wanted)

    def cue(self, task: Task) -> list[int]:
        """The prompt of the task's cue alone."""
        if self.chat:
            return encode_messages(self.tokenizer, [{"role": "user", "content": task.cue}])
        return encode_begun(self.tokenizer, task.cue)

    def _put(self, task: Task, shots: Sequence[Example], example: Example) -> tuple[str, list[int]]:
        """A prompt as text and as the model gets it."""
        if self.chat:
            ids = encode_messages(self.tokenizer, messages(task, shots, example))
            return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False), ids
        text = render(task, shots, example)
        return text, encode_begun(self.tokenizer, text)

    def _choice(self, text: str) -> list[int]:
        if not self.chat:
            return encode(self.tokenizer, text)
        return encode_completion(self.tokenizer, text, eos=False)[len(lead_ids(self.tokenizer)) :]
