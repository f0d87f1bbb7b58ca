"""Questions and passages as the windows that a model reads: "[CLS] question [SEP] a part of the passage [SEP]".

A passage that does not fit is cut into overlapping windows (Devlin et al. 2019, BERT, section 4.2; run_squad.py).
All windows stand one after the other in flat arrays, without padding. Offsets are places in the original passage, so
that an answer's text is always cut from there: decoding ids would lose rare characters, spaces and case.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rlhf_kit.errors import UserError
from rlhf_kit.eval.extractive.questions import Question

STEP = 128  # tokens from one window to the next: BERT's doc_stride
NAMED = 10  # questions that a message names
SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Windows:
    """W windows of T tokens in all; those of a question stand together, in the order of the passage.

    Args:
        input_ids: (T,) int32.
        token_type_ids: (T,) int32, or None where the tokenizer tells questions and passages not apart.
        offsets: (T, 2) int32, first and past-the-last character in the passage; -1 for what no answer may begin or
            end with: the question, special tokens, white space.
        first: (W + 1,) place of each window's first token, and T.
        question: (W,) number of the question.
        null: (W,) the token that stands for no answer, counted from the window's first: [CLS], else the first.
        starts, ends: (W,) first and last token of the answer, counted from the window's first; `null` where the
            answer does not stand in full in the window, or there is none. None unless made for training.
        cut_questions: ids of questions that were longer than `max_query_length`.
        widened: ids whose answer begins or ends inside a token: its label covers more than the answer.
        untold: ids whose answer no token covers: they have no windows here.
    """

    input_ids: NDArray
    token_type_ids: NDArray | None
    offsets: NDArray
    first: NDArray
    question: NDArray
    null: NDArray
    starts: NDArray | None
    ends: NDArray | None
    cut_questions: tuple[str, ...]
    widened: tuple[str, ...]
    untold: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.question)

    @property
    def lengths(self) -> NDArray:
        """(W,) in tokens."""
        return np.diff(self.first)

    def places(self, rows: NDArray) -> tuple[NDArray, NDArray]:
        """Of windows `rows` (B,): (B, L) place of each token, and (B, L) bool, False behind a shorter window's end."""
        steps, lengths = np.arange(self.lengths[rows].max(initial=0)), self.lengths[rows, None]
        there = steps < lengths
        return np.where(there, self.first[rows, None] + steps, 0), there

    def of(self, questions: NDArray) -> tuple[Windows, NDArray]:
        """The windows of some questions, without labels, and the place of each of their tokens here."""
        rows = np.flatnonzero(np.isin(self.question, questions))
        places, there = self.places(rows)
        tokens = places[there]
        types = None if self.token_type_ids is None else self.token_type_ids[tokens]
        first = np.concatenate(([0], np.cumsum(self.lengths[rows])))
        part = replace(
            self, input_ids=self.input_ids[tokens], token_type_ids=types, offsets=self.offsets[tokens], first=first,
            question=self.question[rows], null=self.null[rows], starts=None, ends=None,
        )  # fmt: skip
        return part, tokens


@dataclass(frozen=True)
class _Form:
    """What a tokenizer puts around a question and a passage: ids, and the token type of each part."""

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple[list[int], int, list[int], int, list[int]] | None  # before, question, between, passage, after
    cls: int | None  # below 0: behind the passage, counted from the end

    def null(self, length: int) -> int:
        """Place of the token that stands for no answer in a window of `length` tokens."""
        cls = self.cls or 0  # without a [CLS] the first
        return cls if cls >= 0 else cls + length


def make_windows(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int = 384,
    *,
    overlap: int | None = None,
    step: int | None = None,
    max_query_length: int = 64,
    train: bool = False,
) -> Windows:
    """Windows of at most `max_length` tokens.

    Args:
        overlap: tokens that a window shares with the one before: Hugging Face's doc_stride.
        step: tokens from the beginning of one window to that of the next: BERT's doc_stride. Give one of the two;
            with neither it is 128.
        max_query_length: a longer question loses its end, and is counted.
        train: with labels, from the first answer; of a question without one `null`.

    Raises:
        UserError: a tokenizer without offsets; a window with no room for the passage; both of overlap and step.
    """
    _check(tokenizer, overlap, step)
    form = _form(tokenizer)
    passages = _Passages(questions, tokenizer)
    query_ids = _encode(tokenizer, [question.question for question in questions])["input_ids"]
    parts: list[tuple[list[int], int, int, int]] = []  # question's ids, its number, first and past-the-last token
    labels: list[tuple[int, int]] = []
    nulls: list[int] = []
    cut, widened, untold, empty, crowded = [], [], [], [], []
    for number, (question, ids) in enumerate(zip(questions, query_ids, strict=True)):
        cut += [question.id] * (len(ids) > max_query_length)
        ids = ids[:max_query_length]
        head = len(form.before) + len(ids) + len(form.between)
        room = max_length - head - len(form.after)
        size = len(passages.ids[question.context])
        borders = _borders(size, room, overlap, step)
        if not size or borders is None:
            (crowded if size else empty).append(question.id)
            continue
        answer = None
        if train and question.answers:
            answer, exact = passages.tokens(question.context, *question.answers[0])
            if answer is None:
                untold.append(question.id)
                continue
            widened += [question.id] * (not exact)
        for low, high in borders:
            parts.append((ids, number, low, high))
            nulls.append(form.null(head + high - low + len(form.after)))
            if train:
                inside = answer is not None and low <= answer[0] and answer[1] < high
                shift = head - low
                labels.append((answer[0] + shift, answer[1] + shift) if inside else (nulls[-1], nulls[-1]))
    _refuse(empty, crowded, max_length, overlap)
    marks = np.array(labels, np.int64).reshape(-1, 2)
    return Windows(
        *_flat(questions, parts, passages, form), np.array(nulls, np.int64),
        marks[:, 0] if train else None, marks[:, 1] if train else None,
        tuple(cut), tuple(widened), tuple(untold),
    )  # fmt: skip


def _check(tokenizer: PreTrainedTokenizerBase, overlap: int | None, step: int | None) -> None:
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} does not give the positions of its tokens in the text (no offsets), so no "
            "answer could be taken from the passage. Give a fast tokenizer: a folder with tokenizer.json."
        )
    if overlap is not None and step is not None:
        raise UserError(f"overlap={overlap} and step={step} set the same quantity; give only one.")
    if (step is not None and step < 1) or (overlap is not None and overlap < 0):
        raise UserError("A window's step must be at least 1 and its overlap at least 0.")


def _refuse(empty: Sequence[str], crowded: Sequence[str], max_length: int, overlap: int | None) -> None:
    """Raises UserError with all questions that no window can be made for."""
    faults = []
    if empty:
        faults.append(f"there are no tokens in the passage of {_named(empty)}.")
    if crowded:
        needs, less = (f" and {overlap} tokens of overlap", " or overlap") if overlap else ("", "")
        faults.append(
            f"a window of {max_length} tokens has no room for the question and some of its passage{needs}: "
            f"{_named(crowded)}. Give a larger max_length, or a smaller max_query_length{less}."
        )
    if faults:
        raise UserError("\n".join(faults))


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return f"question{'s' if len(ids) > 1 else ''} {', '.join(map(repr, ids[:NAMED]))}{more}"


def _borders(size: int, room: int, overlap: int | None, step: int | None) -> list[tuple[int, int]] | None:
    """First and past-the-last token of the passage in each window; None where there is no room."""
    ahead = room - overlap if overlap is not None else min(room, step or STEP)
    if room < 1 or (ahead < 1 and size > room):
        return None
    last = max(0, size - room)
    lows = range(0, last + ahead, ahead) if last else range(1)
    return [(low, min(low + room, size)) for low in lows]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], offsets: bool = False) -> dict[str, list]:
    if not texts:
        return {"input_ids": [], "offset_mapping": []}
    # verbose: longer than the model reads is no fault here
    return tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=offsets, return_attention_mask=False,
        return_token_type_ids=False, verbose=False,
    )  # fmt: skip


def _form(tokenizer: PreTrainedTokenizerBase) -> _Form:
    """Found out from a pair of texts."""
    encoded = tokenizer("1", "1", return_token_type_ids=True)
    ids, owners = encoded["input_ids"], encoded.sequence_ids(0)
    if 0 not in owners or 1 not in owners:
        raise UserError(f"{type(tokenizer).__name__} has no token for '1': it cannot read a question.")
    first, second = owners.index(0), owners.index(1)
    past_first = first + owners.count(0)
    past_second = second + owners.count(1)
    types = all_types = None
    if "token_type_ids" in tokenizer.model_input_names:
        all_types = encoded["token_type_ids"]
    if all_types is not None and all_types[first] != all_types[second]:  # equal ones say nothing
        types = (
            all_types[:first], all_types[first], all_types[past_first:second], all_types[second],
            all_types[past_second:],
        )  # fmt: skip
    before, after, mark = ids[:first], ids[past_second:], tokenizer.cls_token_id
    cls = before.index(mark) if mark in before else after.index(mark) - len(after) if mark in after else None
    return _Form(before, ids[past_first:second], after, types, cls)


class _Passages:
    """Every passage is encoded once, however many questions it has."""

    def __init__(self, questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase):
        texts = list(dict.fromkeys(question.context for question in questions))
        encoded = _encode(tokenizer, texts, offsets=True)
        self.ids: dict[str, NDArray] = {}
        self.offsets: dict[str, NDArray] = {}
        for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            self.ids[text] = np.array(ids, np.int32)
            self.offsets[text] = _without_space(text, np.array(offsets, np.int32).reshape(-1, 2))

    def tokens(self, context: str, text: str, start: int) -> tuple[tuple[int, int] | None, bool]:
        """First and last token of an answer, or None where no token covers it; whether they cover nothing else."""
        start += len(text) - len(text.lstrip())
        end = start + len(text.strip())
        offsets = self.offsets[context]
        there = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start))
        if not len(there):
            return None, False
        first, last = int(there[0]), int(there[-1])
        return (first, last), bool(offsets[first, 0] == start and offsets[last, 1] == end)


def _without_space(text: str, offsets: NDArray) -> NDArray:
    """Offsets without the white space that byte-level and SentencePiece tokens begin with; -1 where that is all."""
    begins, ends = np.arange(len(text) + 1), np.arange(len(text) + 1)
    for space in SPACE.finditer(text):
        begins[space.start() : space.end()] = space.end()
        ends[space.start() + 1 : space.end() + 1] = space.start()
    trimmed = np.stack((begins[offsets[:, 0]], ends[offsets[:, 1]]), axis=1)
    trimmed[trimmed[:, 0] >= trimmed[:, 1]] = -1
    return trimmed


def _flat(
    questions: Sequence[Question], parts: Sequence[tuple[list[int], int, int, int]], passages: _Passages, form: _Form
) -> tuple[NDArray, NDArray | None, NDArray, NDArray, NDArray]:
    """input_ids, token_type_ids, offsets, first, question."""
    ids, types, offsets, lengths = [], [], [], []
    after = np.array(form.after, np.int32)
    for query, number, low, high in parts:
        context = questions[number].context
        head = np.array([*form.before, *query, *form.between], np.int32)
        ids += [head, passages.ids[context][low:high], after]
        offsets += [
            np.full((len(head), 2), -1, np.int32), passages.offsets[context][low:high],
            np.full((len(after), 2), -1, np.int32),
        ]  # fmt: skip
        lengths.append(len(head) + high - low + len(after))
        if form.types:
            before, of_question, between, of_passage, behind = form.types
            types += [
                np.array([*before, *[of_question] * len(query), *between], np.int32),
                np.full(high - low, of_passage, np.int32), np.array(behind, np.int32),
            ]  # fmt: skip
    first = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    numbers = np.array([number for _, number, _, _ in parts], np.int64)
    return (
        _joined(ids, (0,)), _joined(types, (0,)) if form.types else None, _joined(offsets, (0, 2)), first, numbers,
    )  # fmt: skip


def _joined(arrays: list[NDArray], empty: tuple[int, ...]) -> NDArray:
    return np.concatenate(arrays).astype(np.int32, copy=False) if arrays else np.zeros(empty, np.int32)
