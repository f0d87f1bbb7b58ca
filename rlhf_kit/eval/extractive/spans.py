"""The best spans of each question over all its windows, exactly and all at once.

A span's score is the logit of its first token plus that of its last (Devlin et al. 2019, BERT, section 4.2). The usual
loop (run_squad.py, Hugging Face's utils_qa.py) looks among the 20 best first and the 20 best last tokens of a window
only, and may miss the best span; here every allowed one counts. Of equal scores the earlier window, the earlier first
token and the shorter span win.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_kit.eval.extractive.windows import Windows

BLOCK = 1 << 18  # tokens worked on at once: what a core's cache holds


@dataclass(frozen=True)
class Spans:
    """K spans, those of a question together, the best first.

    Args:
        question: (K,) number of the question, ascending; one without any span is missing.
        start, end: (K,) first and past-the-last character in the passage.
        score: (K,) float32.
        probability: (K,) softmax of the scores over the spans of a question that are here.
    """

    question: NDArray
    start: NDArray
    end: NDArray
    score: NDArray
    probability: NDArray

    def __getitem__(self, part: slice) -> Spans:
        return Spans(self.question[part], self.start[part], self.end[part], self.score[part], self.probability[part])


def best_spans(
    windows: Windows, start_logits: NDArray, end_logits: NDArray, max_answer_length: int = 30, n_best: int = 20
) -> Spans:
    """The `n_best` spans of each question.

    Args:
        start_logits, end_logits: (T,) float32, of each token of `windows`.
        max_answer_length: of a span, in tokens.
    """
    blocks = [
        _of_block(windows, low, high, start_logits, end_logits, max_answer_length, n_best)
        for low, high in _blocks(windows)
    ]
    question, start, end, score = (
        (np.concatenate(column) for column in zip(*blocks, strict=True)) if blocks else (np.zeros(0, np.int64),) * 4
    )
    return Spans(question, start, end, score, _probabilities(question, score))


def _blocks(windows: Windows) -> list[tuple[int, int]]:
    """First and past-the-last window of each block; the windows of a question are never parted."""
    if not len(windows):
        return []
    borders = np.flatnonzero(np.diff(windows.question, prepend=-1)).tolist()  # first windows of questions
    blocks, low = [], 0
    for here, after in zip(borders, [*borders[1:], len(windows)], strict=True):
        if windows.first[after] - windows.first[low] > BLOCK and here > low:
            blocks.append((low, here))
            low = here
    return [*blocks, (low, len(windows))]


def _of_block(
    windows: Windows, low: int, high: int, start_logits: NDArray, end_logits: NDArray, longest: int, n_best: int
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """question, start, end, score of the best spans of windows low to high."""
    tokens = slice(int(windows.first[low]), int(windows.first[high]))
    offsets = windows.offsets[tokens]
    number = np.repeat(np.arange(low, high), windows.lengths[low:high])  # window of each token
    allowed = np.flatnonzero(offsets[:, 0] >= 0)
    # Gaps as long as an answer: no span reaches from one window into the next.
    place = allowed + (number[allowed] - low) * longest
    width = tokens.stop - tokens.start + (high - low + 1) * longest
    first, last = np.full(width, -np.inf, np.float32), np.full(width, -np.inf, np.float32)
    first[place], last[place] = start_logits[tokens][allowed], end_logits[tokens][allowed]
    best = first + _forward_maximum(last, longest)  # of the spans that begin here

    owner = windows.question[number[allowed]]
    least = _least_of_best(best[place], owner, n_best)
    at = np.flatnonzero(best[place] >= least)
    spans = first[place[at], None] + last[place[at, None] + np.arange(longest)]
    row, lag = np.nonzero((spans >= least[at, None]) & np.isfinite(spans))
    owner, score = owner[at[row]], spans[row, lag]
    order = np.lexsort((-score, owner))  # stable: an equal score keeps the order window, first token, length
    order = order[_rank(owner[order]) < n_best]
    begin, finish = place[at[row[order]]], place[at[row[order]]] + lag[order]
    token = np.full(width, -1, np.int64)
    token[place] = allowed
    return owner[order], offsets[token[begin], 0], offsets[token[finish], 1], score[order]


def _forward_maximum(values: NDArray, span: int) -> NDArray:
    """(N,) maximum of each value and the `span` - 1 behind it, by doubling: O(N log span)."""
    maxima, width = values.copy(), 1
    while width < span:
        step = min(width, span - width)
        maxima[:-step] = np.maximum(maxima[:-step], maxima[step:])
        width += step
    return maxima


def _least_of_best(values: NDArray, owner: NDArray, n_best: int) -> NDArray:
    """(N,) the `n_best`-th largest value of each value's owner; -inf where there are fewer.

    Of the spans that begin with one token each the best: so the `n_best` best spans of all are no worse than it.
    """
    begins = np.flatnonzero(np.diff(owner, prepend=-1))
    sizes = np.diff(begins, append=len(owner))
    least = np.full(len(begins), -np.inf, np.float32)
    for at, (begin, size) in enumerate(zip(begins.tolist(), sizes.tolist(), strict=True)):
        if size >= n_best:
            least[at] = np.partition(values[begin : begin + size], size - n_best)[size - n_best]
    return np.repeat(least, sizes)


def _rank(owner: NDArray) -> NDArray:
    """Place within its run of equal numbers. [4, 4, 7] -> [0, 1, 0]"""
    begins = np.flatnonzero(np.diff(owner, prepend=-1))
    return np.arange(len(owner)) - np.repeat(begins, np.diff(begins, append=len(owner)))


def _probabilities(question: NDArray, score: NDArray) -> NDArray:
    if not len(question):
        return np.zeros(0, np.float32)
    begins = np.flatnonzero(np.diff(question, prepend=-1))
    sizes = np.diff(begins, append=len(question))
    weights = np.exp(score - np.repeat(score[begins], sizes))  # the first of a question is its best
    return weights / np.repeat(np.add.reduceat(weights, begins), sizes)
