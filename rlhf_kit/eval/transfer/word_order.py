"""Passages with their words in another order: what is left to a model that learns from words alone.

Hsu et al. 2019 (arXiv:1909.09587) fine-tune on English in the word order of other languages. The answer is moved as
one, so that it is still a span; words stay in their sentence, and what stands between words (spaces, marks) in place.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from rlhf_kit.eval.extractive.questions import Question
from rlhf_kit.hashes import text_hash

ORDERS = ("random", "reversed")
CHINESE = "\u3400-\u9fff\uf900-\ufaff"  # where a character is a word
LETTERS = rf"[^\W{CHINESE}]+"
WORD = re.compile(rf"[{CHINESE}]|{LETTERS}(?:['’-]{LETTERS}|(?<=\d)[.,](?=\d){LETTERS})*")  # it's, 3.5
SENTENCE_END = re.compile(r"[.!?。！？\n]")


def reorder(question: Question, order: str, seed: int = 0) -> Question:
    """The question with the words of its passage in another order, and with its first answer only.

    Args:
        order: "random", or "reversed": the last word of a sentence first.
        seed: of the random order, which the question's id decides as well.

    Raises:
        ValueError: for another order.
    """
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}: it must be {' or '.join(ORDERS)}")
    text, start = question.answers[0]
    units = _units(question.context, start, start + len(text))
    draw = random.Random(f"{seed} {question.id}")
    parts, at, length = [], 0, 0
    for sentence in _sentences(question.context, units):
        moved = sentence[::-1] if order == "reversed" else draw.sample(sentence, len(sentence))
        for (first, past), (new_first, new_past) in zip(sentence, moved, strict=True):
            parts += [question.context[at:first], question.context[new_first:new_past]]
            length += first - at
            if new_first <= start < new_past:
                place = length + start - new_first
            length += new_past - new_first
            at = past
    context = "".join([*parts, question.context[at:]])
    return replace(question, context=context, answers=((text, place),), group=text_hash(context))


def _units(context: str, start: int, end: int) -> list[tuple[int, int]]:
    """(first, past-the-last) character of each word; those that the answer touches are one, with all of the answer."""
    words = [word.span() for word in WORD.finditer(context)]
    touched = [span for span in words if span[0] < end and span[1] > start]
    answer = min([start, *(first for first, _ in touched)]), max([end, *(past for _, past in touched)])
    return sorted([answer, *(span for span in words if span not in touched)])


def _sentences(context: str, units: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """The units of each sentence; a mark inside a unit ends none."""
    sentences, before = [], 0
    for first, past in units:
        if not sentences or SENTENCE_END.search(context, before, first):
            sentences.append([])
        sentences[-1].append((first, past))
        before = past
    return sentences
