"""The best spans: all allowed ones by a plain loop, and the usual loop over the 20 best tokens of a window."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_kit.eval.extractive import spans as module
from rlhf_kit.eval.extractive.spans import best_spans
from rlhf_kit.eval.extractive.windows import Windows


def windows_of(rows, rng):
    """Windows as [(question, passage's tokens), ...], each between three tokens that are none and one that is none."""
    offsets, first, numbers = [], [0], []
    for number, size in rows:
        start = rng.randrange(50)
        there = [(start + 2 * at, start + 2 * at + 2) for at in range(size)]
        there = [(-1, -1) if rng.random() < 0.05 else place for place in there]  # white space
        offsets += [(-1, -1)] * 3 + there + [(-1, -1)]
        first.append(len(offsets))
        numbers.append(number)
    count = len(offsets)
    return Windows(
        np.zeros(count, np.int32), None, np.array(offsets, np.int32).reshape(-1, 2), np.array(first),
        np.array(numbers), np.zeros(len(numbers), int), None, None, (), (), (),
    )  # fmt: skip


def reference(windows, starts, ends, longest, n_best, cut=None):
    """question -> [(score, start, end), ...]: `postprocess_qa_predictions` of Hugging Face's utils_qa.py.

    cut: how many of the best first and last tokens of a window it looks at (there: n_best); None = all.
    """
    found = {}
    for row, number in enumerate(windows.question.tolist()):
        low, high = windows.first[row], windows.first[row + 1]
        first, last = starts[low:high], ends[low:high]
        offsets = windows.offsets[low:high]
        best_first = np.argsort(-first, kind="stable")[:cut].tolist()
        best_last = np.argsort(-last, kind="stable")[:cut].tolist()
        for begin in sorted(best_first):
            for end in sorted(best_last):
                if offsets[begin][0] < 0 or offsets[end][0] < 0 or end < begin or end - begin + 1 > longest:
                    continue
                span = (first[begin] + last[end], int(offsets[begin][0]), int(offsets[end][1]))
                found.setdefault(number, []).append(span)
    return {number: sorted(listed, key=lambda one: -one[0])[:n_best] for number, listed in found.items()}


def ours(windows, starts, ends, longest, n_best):
    spans = best_spans(windows, starts, ends, longest, n_best)
    found = {}
    for row, number in enumerate(spans.question.tolist()):
        found.setdefault(number, []).append((spans.score[row], int(spans.start[row]), int(spans.end[row])))
    return found


def case(seed, questions=12, coarse=False):
    rng, drawn = random.Random(seed), np.random.default_rng(seed)
    rows = [(number, rng.randrange(0, 45)) for number in range(questions) for _ in range(rng.randrange(1, 4))]
    windows = windows_of(rows, rng)
    logits = drawn.normal(size=(2, len(windows.input_ids)), scale=3).astype(np.float32)
    return windows, *(np.round(logits) if coarse else logits)


@pytest.mark.parametrize("coarse", [False, True], ids=["different", "many ties"])
@pytest.mark.parametrize(("longest", "n_best"), [(30, 20), (1, 5), (7, 1), (4, 100), (60, 20)])
def test_they_are_the_best_of_all_allowed_spans(longest, n_best, coarse, monkeypatch):
    for seed in range(5):
        windows, starts, ends = case(seed, coarse=coarse)
        expected = reference(windows, starts, ends, longest, n_best)
        assert ours(windows, starts, ends, longest, n_best) == expected  # scores to the last bit, ties in order too
        monkeypatch.setattr(module, "BLOCK", 40)  # a block a question
        assert ours(windows, starts, ends, longest, n_best) == expected
        monkeypatch.undo()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 8))
def test_they_are_so_for_any_lengths(seed, longest, n_best):
    windows, starts, ends = case(seed, questions=3, coarse=seed % 2 == 0)
    assert ours(windows, starts, ends, longest, n_best) == reference(windows, starts, ends, longest, n_best)


def test_the_usual_loop_finds_the_same_answer_or_a_worse_one():
    same = 0
    for seed in range(20):
        windows, starts, ends = case(seed)
        usual, mine = reference(windows, starts, ends, 30, 20, cut=20), ours(windows, starts, ends, 30, 20)
        for number, listed in usual.items():
            assert mine[number][0] == listed[0] or mine[number][0][0] > listed[0][0]
            same += mine[number][0] == listed[0]
    assert same > 0


def test_peaked_logits_as_a_trained_model_has_them_give_the_usual_loops_answer_on_every_question():
    for seed in range(10):
        windows, starts, ends = case(seed)
        rng = np.random.default_rng(seed)
        allowed = np.flatnonzero(windows.offsets[:, 0] >= 0)
        for _ in range(6):
            at = rng.choice(allowed)
            starts[at] += 12
            ends[at : at + 3][windows.offsets[at : at + 3, 0] >= 0] += 12
        usual, mine = reference(windows, starts, ends, 30, 20, cut=20), ours(windows, starts, ends, 30, 20)
        peaked = [number for number, listed in usual.items() if listed[0][0] > 18]
        assert peaked and all(mine[number][0] == usual[number][0] for number in peaked)


def test_of_equal_scores_the_first_window_the_first_token_and_the_shortest_span_win():
    windows = windows_of([(0, 4), (0, 4)], random.Random(3))
    windows.offsets[3:7] = [(0, 1), (1, 2), (2, 3), (3, 4)]
    windows.offsets[11:15] = [(5, 6), (6, 7), (7, 8), (8, 9)]
    flat = np.zeros(len(windows.input_ids), np.float32)
    found = best_spans(windows, flat, flat, max_answer_length=2, n_best=4)
    assert list(zip(found.start.tolist(), found.end.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2), (1, 3)]
    assert np.allclose(found.probability, 0.25)


def test_probabilities_are_the_softmax_over_what_is_kept():
    windows, starts, ends = case(4)
    found = best_spans(windows, starts, ends)
    for number in np.unique(found.question):
        scores = found.score[found.question == number].astype(float).tolist()
        total = math.fsum(math.exp(score) for score in scores)
        assert np.allclose(found.probability[found.question == number], [math.exp(score) / total for score in scores])
    huge = best_spans(windows, starts * 1000, ends * 1000)
    assert np.isfinite(huge.probability).all()


def test_a_question_without_an_allowed_span_is_missing_and_no_windows_are_no_spans():
    windows = windows_of([(0, 0), (1, 3), (2, 0)], random.Random(1))
    zeros = np.zeros(len(windows.input_ids), np.float32)
    assert set(best_spans(windows, zeros, zeros).question.tolist()) == {1}
    nothing = windows_of([], random.Random(1))
    assert len(best_spans(nothing, zeros[:0], zeros[:0]).question) == 0
