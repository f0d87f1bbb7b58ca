"""Answers to questions: every window forwarded once, in batches of like length, then the best spans."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.errors import UserError
from rlhf_kit.eval.extractive.models import check_length, reads_types
from rlhf_kit.eval.extractive.questions import Question
from rlhf_kit.eval.extractive.spans import Spans, best_spans
from rlhf_kit.eval.extractive.windows import Windows, make_windows
from rlhf_kit.progress import Progress

TOGETHER = 256  # questions whose spans are searched at once while others are still being forwarded


class Candidate(NamedTuple):
    """A span of the passage. `probability`: softmax of the scores over the candidates of its question."""

    text: str
    start: int
    probability: float
    score: float


@dataclass(frozen=True)
class Prediction:
    """The best span for a question: its text, its start in the passage, its share among the `n_best`.

    Where no span was allowed: "", -1 and 0. The others are in `spans`, cut from the passage when they are asked for.

    Args:
        null_score: the logits of the token that stands for no answer, first plus last, the least of all windows (BERT,
            Devlin et al. 2019, section 4.3). Without an answer by it: "", -1 and `no_answer_probability`.
    """

    id: str
    text: str
    start: int
    probability: float
    null_score: float
    context: str = field(repr=False)
    spans: Spans = field(repr=False, compare=False)

    @property
    def null_score_difference(self) -> float:
        """`null_score` less the best span's; the largest float32 where there is no span."""
        return _difference(self.null_score, self.spans)

    @property
    def no_answer_probability(self) -> float:
        """Softmax of `null_score` and the best span's."""
        return _sigmoid(self.null_score_difference)

    @property
    def n_best(self) -> tuple[Candidate, ...]:
        """The best first."""
        spans = self.spans
        starts = spans.start.tolist()
        texts = [self.context[start:end] for start, end in zip(starts, spans.end.tolist(), strict=True)]
        return tuple(map(Candidate, texts, starts, spans.probability.tolist(), spans.score.tolist()))


def _difference(null_score: float, spans: Spans) -> float:
    largest = float(np.finfo(np.float32).max)  # what a file of JSON can hold
    return max(-largest, min(largest, null_score - float(spans.score[0]))) if len(spans.score) else largest


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > 0 else math.exp(value) / (1 + math.exp(value))


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    max_length: int = 384,
    overlap: int | None = None,
    step: int | None = None,
    max_query_length: int = 64,
    max_answer_length: int = 30,
    n_best: int = 20,
    null_threshold: float | None = None,
    max_batch_tokens: int = 8192,
    shown: bool = True,
) -> list[Prediction]:
    """Predictions in the questions' order, in the model's own precision and on its device.

    Args:
        model: any `AutoModelForQuestionAnswering`.
        max_length, overlap, step, max_query_length: of the windows (`windows.make_windows`).
        max_answer_length: of a span, in tokens.
        null_threshold: above this `null_score_difference` there is no answer (SQuAD 2.0); None: always one (1.1).
        max_batch_tokens: of a forward, padding included: bounds the memory and changes no answer.
        shown: tell the progress; False on all processes but one.

    Raises:
        UserError: what `make_windows` raises; windows too long for the model; logits that are no numbers.
    """
    check_length(model, max_length)
    windows = make_windows(
        questions, tokenizer, max_length, overlap=overlap, step=step, max_query_length=max_query_length
    )
    best = {}
    with Progress(len(questions), "questions", shown) as progress:
        for one in predictions(
            model, tokenizer.pad_token_id, questions, windows, max_answer_length, n_best, null_threshold,
            max_batch_tokens,
        ):  # fmt: skip
            best[one.id] = one
            progress.add(1)
    return [best[question.id] for question in questions]


def predictions(
    model: PreTrainedModel,
    pad: int | None,
    questions: Sequence[Question],
    windows: Windows,
    max_answer_length: int = 30,
    n_best: int = 20,
    null_threshold: float | None = None,
    max_batch_tokens: int = 8192,
) -> Iterator[Prediction]:
    """Each prediction when the last window of its question is through: the questions with long passages first.

    Args:
        pad: id to pad with; any will do, since it is masked.
        windows: of `questions`.
    """
    starts, ends = np.empty(len(windows.input_ids), np.float32), np.empty(len(windows.input_ids), np.float32)
    open_windows = np.bincount(windows.question, minlength=len(questions))
    waiting: list[int] = []
    for rows in _batches(windows.lengths, max_batch_tokens):
        _forward(model, pad or 0, windows, rows, starts, ends)
        for number in windows.question[rows].tolist():
            open_windows[number] -= 1
            if open_windows[number] == 0:
                waiting.append(number)
        if len(waiting) >= TOGETHER:
            yield from _answer(questions, windows, waiting, starts, ends, max_answer_length, n_best, null_threshold)
            waiting = []
    yield from _answer(questions, windows, waiting, starts, ends, max_answer_length, n_best, null_threshold)


def _batches(lengths: NDArray, max_batch_tokens: int) -> Iterator[NDArray]:
    """Numbers of windows, the longest first, so many that with padding they hold at most `max_batch_tokens`."""
    order = np.argsort(-lengths, kind="stable")
    low = 0
    while low < len(order):
        size = max(1, max_batch_tokens // int(lengths[order[low]]))
        yield order[low : low + size]
        low += size


@torch.inference_mode()
def _forward(
    model: PreTrainedModel, pad: int, windows: Windows, rows: NDArray, starts: NDArray, ends: NDArray
) -> None:
    """Logits of some windows, padded on the right, into their places of `starts` and `ends` (T,)."""
    device = next(model.parameters()).device
    places, there = windows.places(rows)

    def padded(values: NDArray, fill: int) -> torch.Tensor:
        return torch.from_numpy(np.where(there, values[places], fill).astype(np.int64)).to(device)

    inputs = {"input_ids": padded(windows.input_ids, pad), "attention_mask": torch.from_numpy(there).long().to(device)}
    if windows.token_type_ids is not None and reads_types(model):
        inputs["token_type_ids"] = padded(windows.token_type_ids, 0)
    training = model.training
    model.eval()
    out = model(**inputs)
    model.train(training)
    for logits, into in ((out.start_logits, starts), (out.end_logits, ends)):
        values = logits.float().cpu().numpy()[there]
        if np.isnan(values).any():
            raise UserError(
                f"The model's logits are not numbers (NaN) in {str(logits.dtype).removeprefix('torch.')}. "
                "Use --dtype float32 or bfloat16; if they give NaN too, its training diverged."
            )
        into[places[there]] = values


def _answer(
    questions: Sequence[Question], windows: Windows, numbers: list[int], starts: NDArray, ends: NDArray,
    max_answer_length: int, n_best: int, null_threshold: float | None,
) -> list[Prediction]:  # fmt: skip
    """Predictions of the questions `numbers`, all of whose windows are through."""
    part, tokens = windows.of(np.array(numbers, np.int64))
    return postprocess(questions, part, starts[tokens], ends[tokens], max_answer_length, n_best, null_threshold)


def postprocess(
    questions: Sequence[Question],
    windows: Windows,
    start_logits: NDArray,
    end_logits: NDArray,
    max_answer_length: int = 30,
    n_best: int = 20,
    null_threshold: float | None = None,
) -> list[Prediction]:
    """Predictions of all questions that have windows, in order, from the logits (T,) of the windows' tokens."""
    spans = best_spans(windows, start_logits, end_logits, max_answer_length, n_best)
    numbers, rows = np.unique(windows.question, return_index=True)  # the windows of a question stand together
    null = windows.first[:-1] + windows.null
    nulls = np.minimum.reduceat(start_logits[null] + end_logits[null], rows).tolist() if len(rows) else []
    lows = np.searchsorted(spans.question, numbers).tolist()
    highs = np.searchsorted(spans.question, numbers, side="right").tolist()
    answers = []
    for number, low, high, null_score in zip(numbers.tolist(), lows, highs, nulls, strict=True):
        question, start, probability, text = questions[number], -1, 0.0, ""
        difference = _difference(null_score, spans[low:high])
        if null_threshold is not None and difference > null_threshold:
            probability = _sigmoid(difference)
        elif low < high:
            start, probability = int(spans.start[low]), float(spans.probability[low])
            text = question.context[start : spans.end[low]]
        answers.append(
            Prediction(question.id, text, start, probability, null_score, question.context, spans[low:high])
        )
    return answers
