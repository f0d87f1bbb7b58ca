"""`rlhf-kit eval squad`: SQuAD 2.0 answered in the model's own words; a question may have no answer in its passage.

Background, question and `Answer:` as lm-evaluation-harness's `squadv2` puts them (after GPT-3, section 3.6), without
the title and with a line that says what to write where there is no answer. Greedy, up to the end of the line; the
official EM and F1, with HasAns and NoAns as groups and the whole report as the detail `official`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedModel

from rlhf_kit.eval.extractive.data import Question, read_questions
from rlhf_kit.eval.items import Item
from rlhf_kit.eval.prompts import draw, encode_questions, fit
from rlhf_kit.eval.scorers import CHINESE, Answered, Score, squad2, squad2_report
from rlhf_kit.eval.task import ShotArguments, Task
from rlhf_kit.generation.decoding import Decoding, continuations
from rlhf_kit.generation.generators import layout
from rlhf_kit.hashes import text_hash

HOW = Decoding(max_new_tokens=32)
ENGLISH = 'Answer with words of the passage, or with "unanswerable" if it does not tell.', "unanswerable"
MANDARIN = "請用文章中的文字回答；文章沒有提到時，請回答「無法回答」。", "無法回答"


class SquadArguments(ShotArguments):
    """`dataset_name`: SQuAD's JSON or the hub's columns."""


class Squad(Task):
    name, protocol, version, unit = "squad", "squadv2-greedy", 1, "questions"
    Arguments = SquadArguments

    def read(self) -> list[Question]:
        return read_questions(self.options.dataset_name, self.options.split, unanswerable=True)[0]

    def prepare(self) -> list[str]:
        self.chat = layout(self.tokenizer, self.options.apply_chat_template)
        source = self.source_of_shots
        self.pool = read_questions(source, "train", unanswerable=True)[0] if source else []
        ids = [question.id for question in self.rows]
        self.prompts = dict(zip(ids, self.each(self.prompt, "question", ids), strict=True))
        self.questions = dict(zip(ids, self.rows, strict=True))
        return ids

    def prompt(self, question: Question) -> tuple[list[int], int]:
        shots = draw(self.pool, self.options.shots, question, self.options.seed)
        return fit(self.encode, shots, question, self.context, HOW.max_new_tokens)

    def encode(self, questions: Sequence[Question]) -> list[int]:
        instruction, no_answer = MANDARIN if CHINESE.search(questions[-1].question) else ENGLISH
        texts = [f"Background: {each.context}\n\nQuestion: {each.question}" for each in questions]
        answers = [(each.references or [no_answer])[0] for each in questions[:-1]]
        return encode_questions(self.tokenizer, instruction, texts, answers, self.options.apply_chat_template)

    def settings(self) -> dict[str, Any]:
        pool = text_hash(str(self.pool))
        return {**super().settings(), **self.chat, "shots": self.options.shots, "demonstrations": pool}

    def ask(self, model: PreTrainedModel, ids: Sequence[str]) -> Iterator[Item]:
        prompts = [self.prompts[name][0] for name in ids]
        for at, written in continuations(model, self.tokenizer, prompts, HOW, self.options.max_batch_tokens):
            yield item_of(self.questions[ids[at]], *self.prompts[ids[at]], written.text, written.answer)

    def details(self, items: Sequence[Item]) -> dict[str, Any]:
        scored = [Answered(Score(**item.scores), item.group == "HasAns", item.answer) for item in items]
        return {"official": squad2_report(scored), "shots": sum(item.details["shots"] for item in items) / len(items)}


def item_of(question: Question, ids: list[int], shots: int, output: str, answer: str) -> Item:
    prediction = "" if answer.strip(" .。「」\"'").lower() in (ENGLISH[1], MANDARIN[1]) else answer
    scores, group = squad2(prediction, question.references)._asdict(), "HasAns" if question.answers else "NoAns"
    prompt = text_hash(str(ids))
    return Item(question.id, question.group, prompt, output, prediction, scores, group, {"shots": shots})
