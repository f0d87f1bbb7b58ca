"""How well scores agree with people's rankings: pure measures in float64, of one list and of many.

Notation: a list is K answers to one prompt as one labeler ranked them: scores (K,), ranks (K,) with 1 = best and equal
ranks = a tie. Every list weighs the same, and so do the pairs within it. NaN is what is not defined.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_kit.data.labelers import tau_b
from rlhf_kit.intervals import (
    Figure,
    auc,
    calibration_error,
    correlation,
    difference,
    intervals,
    mean,
    numbered,
    point,
)

CALIBRATION_BINS = 10
LENGTH_BINS = 5

# ------------------------------------------------------------------------------------------
# One list


def pairs(scores: ArrayLike, ranks: ArrayLike) -> tuple[NDArray, NDArray]:
    """Of each two answers i < j: margin s_i - s_j, and order: 1 = i is the better one, -1 = j is, 0 = a tie.

    (K,), (K,) -> (M,), (M,) with M = K (K - 1) / 2.
    """
    scores, ranks = np.asarray(scores, float), np.asarray(ranks, float)
    i, j = _two_of(len(scores))
    return scores[i] - scores[j], np.sign(ranks[j] - ranks[i])


@functools.cache
def _two_of(size: int) -> tuple[NDArray, NDArray]:
    return np.triu_indices(size, 1)


def pair_accuracy(scores: ArrayLike, ranks: ArrayLike) -> float:
    """Share of the strictly ordered pairs that the scores order alike; an equal score counts 0.5.

    >>> pair_accuracy([3.0, 1.0, 1.0], [1, 2, 3])
    0.8333333333333334
    """
    margin, order = pairs(scores, ranks)
    return _mean((1 + np.sign(margin) * order)[order != 0] / 2)


def kendall_tau_b(scores: ArrayLike, ranks: ArrayLike) -> float:
    """`labelers.tau_b` of the order of the scores, the highest first, and the ranks."""
    return tau_b((-np.asarray(scores, float)).tolist(), np.asarray(ranks).tolist())


def top_agreement(scores: ArrayLike, ranks: ArrayLike) -> float:
    """1 if the best-scored answer is one of those ranked best, else 0; several equally best-scored ones share.

    NaN where all answers tie: whichever scored best would be right.
    """
    scores, ranks = np.asarray(scores, float), np.asarray(ranks)
    if not len(ranks) or (ranks == ranks[0]).all():
        return math.nan
    return _mean((ranks == ranks.min())[scores == scores.max()])


def bottom_agreement(scores: ArrayLike, ranks: ArrayLike) -> float:
    """The same at the other end: the worst-scored answer is one of those ranked last."""
    return top_agreement(-np.asarray(scores, float), -np.asarray(ranks))


# By name: what a list is worth, whose mean over lists is the figure.
OF_A_LIST = {
    "pair_accuracy": pair_accuracy,
    "kendall_tau": kendall_tau_b,
    "top1": top_agreement,
    "bottom1": bottom_agreement,
}


def midranks(values: ArrayLike) -> NDArray:
    """Rank of each value from 1 = lowest; equal values share the mean of their places. (N,) -> (N,).

    >>> midranks([5, 1, 5]).tolist()
    [2.5, 1.0, 2.5]
    """
    _, place, count = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


# ------------------------------------------------------------------------------------------
# Calibration


def sigmoid(logits: NDArray) -> NDArray:
    return np.exp(-np.logaddexp(0, -logits))


def log_losses(logits: NDArray, outcomes: NDArray) -> NDArray:
    """-y log p - (1 - y) log(1 - p) in nats, p = sigmoid(logit) and y an outcome from 0 to 1. (N,), (N,) -> (N,)."""
    return np.logaddexp(0, -logits) * outcomes + np.logaddexp(0, logits) * (1 - outcomes)


def bins_of(probabilities: NDArray, low: float) -> tuple[NDArray, NDArray]:
    """Bin of each probability (N,), and the edges (11,) of ten bins of equal width over [low, 1]."""
    edges = np.linspace(low, 1, CALIBRATION_BINS + 1)
    return np.digitize(probabilities, edges[1:-1]), edges


def reliability(probabilities: NDArray, outcomes: NDArray, weights: NDArray, low: float) -> list[dict]:
    """Predicted probability against what came true, bin by bin; an empty bin is left out. All (N,).

    Source: Niculescu-Mizil and Caruana 2005, "Predicting Good Probabilities with Supervised Learning", section 3.
    """
    bins, edges = bins_of(probabilities, low)
    return [
        {
            "low": float(edges[at]),
            "high": float(edges[at + 1]),
            "predicted": float(np.average(probabilities[inside], weights=weights[inside])),
            "accuracy": float(np.average(outcomes[inside], weights=weights[inside])),
            "count": int(inside.sum()),
        }
        for at in range(CALIBRATION_BINS)
        if (inside := bins == at).any()
    ]


def _calibration_figures(logits, outcomes, prompts, weights, low: float) -> dict[str, Figure]:
    probabilities = sigmoid(logits)
    bins, _ = bins_of(probabilities, low)
    return {
        "ece": calibration_error(probabilities, outcomes, bins, prompts, weights),
        "brier": mean((probabilities - outcomes) ** 2, prompts, weights),
        "log_loss": mean(log_losses(logits, outcomes), prompts, weights),
    }


# ------------------------------------------------------------------------------------------
# Many lists


@dataclass(frozen=True)
class RankedList:
    """K answers to one prompt: scores, ranks (1 = best) and completion lengths in tokens, all (K,); K >= 2.

    Lists with an equal `prompt` (any hashable name of it) are of one prompt, by several labelers perhaps.
    """

    prompt: str
    scores: Sequence[float]
    ranks: Sequence[int]
    lengths: Sequence[int]


class Measures(ABC):
    """Held-out data with a reward model's scores of them. `prompts`: (N,) of each list or thumb, numbers from 0."""

    prompts: NDArray

    @abstractmethod
    def figures(self) -> dict[str, Figure]:
        """By name, each over the prompts."""

    @abstractmethod
    def details(self) -> dict[str, Any]:
        """n (what was counted), reliability, length_bins."""

    def measure(self, seed: int = 0) -> dict[str, Any]:
        """All of it, with 95 % intervals over prompts: scores, intervals, n, reliability, length_bins."""
        figures = self.figures()
        return {
            "scores": {name: point(figure, self.prompts) for name, figure in figures.items()},
            "intervals": intervals(figures, self.prompts, seed),
            **self.details(),
        }


class Rankings(Measures):
    """Lists, and the pairs of all of them, (M,) each.

    Args:
        logit_scale: what turns a difference of scores into Bradley-Terry log-odds.
    """

    def __init__(self, lists: Sequence[RankedList], logit_scale: float = 1.0):
        self.lists, self.prompts = lists, numbered(item.prompt for item in lists)
        per_list = [pairs(item.scores, item.ranks) for item in lists]
        margin, self.order = (np.concatenate(parts) for parts in zip(*per_list, strict=True))
        self.longer = np.concatenate([pairs(item.lengths, item.ranks)[0] for item in lists])
        sizes = np.array([len(part) for part, _ in per_list])
        self.owner = np.repeat(np.arange(len(lists)), sizes)  # list of each pair
        self.shares = 1 / sizes[self.owner]
        # Folded so that the predicted answer is the one with the higher score: p >= 0.5.
        self.logits, self.outcomes = np.abs(margin) * logit_scale, (1 + np.sign(margin) * self.order) / 2

    def figures(self) -> dict[str, Figure]:
        lists, prompts = self.lists, self.prompts
        by_length = [pair_accuracy(item.lengths, item.ranks) for item in lists]
        return {
            **{name: mean(self._each(measure), prompts) for name, measure in OF_A_LIST.items()},
            **_calibration_figures(self.logits, self.outcomes, prompts[self.owner], self.shares, low=0.5),
            "longer_is_better": mean(by_length, prompts),
            **_length_figures(lists, prompts),
        }

    def details(self) -> dict[str, Any]:
        ordered = self.order != 0
        longer = (self.longer * self.order)[ordered]
        return {
            "n": {
                "lists": len(self.lists),
                "prompts": int(self.prompts.max()) + 1,
                "completions": sum(len(item.ranks) for item in self.lists),
                "ordered_pairs": int(ordered.sum()),
                "tied_pairs": int((~ordered).sum()),
                "lists_without_order": int(np.isnan(self._each(pair_accuracy)).sum()),
                "lists_without_tau": int(np.isnan(self._each(kendall_tau_b)).sum()),
            },
            "reliability": reliability(sigmoid(self.logits), self.outcomes, self.shares, low=0.5),
            "length_bins": accuracy_by_length(longer, self.outcomes[ordered], self.shares[ordered]),
        }

    def _each(self, measure: Callable[[ArrayLike, ArrayLike], float]) -> NDArray:
        return np.array([measure(item.scores, item.ranks) for item in self.lists])


def accuracy_by_length(differences: NDArray, outcomes: NDArray, weights: NDArray) -> list[dict]:
    """Accuracy of ordered pairs by len(better) - len(worse) in tokens, in five bins with edges at the quintiles.

    Equal quintiles make fewer bins. All (M,).
    """
    if not len(differences):
        return []
    edges = np.unique(np.quantile(differences, np.linspace(0, 1, LENGTH_BINS + 1)))
    bins = np.searchsorted(edges[1:-1], differences, side="right")
    return [
        {
            "low": float(differences[inside].min()),
            "high": float(differences[inside].max()),
            "mean": float(differences[inside].mean()),
            "accuracy": float(np.average(outcomes[inside], weights=weights[inside])),
            "count": int(inside.sum()),
        }
        for at in range(len(edges))
        if (inside := bins == at).any()
    ]


def _length_figures(lists: Sequence[RankedList], prompts: NDArray) -> dict[str, Figure]:
    """Correlations with length of the score and of people's rank (turned round, so that more is better).

    Within: each list's own mean is taken off, of the mid-ranks within the list for Spearman's. Overall: as they are.
    """
    prompts = np.repeat(prompts, [len(item.ranks) for item in lists])
    columns = {
        "score": [np.asarray(item.scores, float) for item in lists],
        "rank": [-np.asarray(item.ranks, float) for item in lists],
        "length": [np.asarray(item.lengths, float) for item in lists],
    }

    def joined(change: Callable[[NDArray], NDArray]) -> dict[str, NDArray]:
        return {name: np.concatenate([change(part) for part in parts]) for name, parts in columns.items()}

    plain = joined(lambda part: part)
    ways = {
        "spearman": joined(lambda part: midranks(part) - (len(part) + 1) / 2),
        "pearson": joined(lambda part: part - part.mean()),
        "spearman_overall": {name: midranks(values) for name, values in plain.items()},
        "pearson_overall": plain,
    }
    figures = {
        f"length_{way}_{name}": correlation(values[name], values["length"], prompts)
        for way, values in ways.items()
        for name in ("score", "rank")
    }
    excess = difference(figures["length_spearman_score"], figures["length_spearman_rank"])
    return figures | {"length_spearman_excess": excess}


class Thumbs(Measures):
    """Thumbs, each weighing the same. All (N,).

    Args:
        logits: log-odds of a thumbs-up; above 0 predicts one.
        prompts: any hashable names.
    """

    def __init__(
        self, logits: Sequence[float], labels: Sequence[bool], lengths: Sequence[int], prompts: Sequence[str]
    ):
        self.logits, self.up = np.asarray(logits, float), np.asarray(labels, float)
        self.prompts, self.lengths = numbered(prompts), np.asarray(lengths, float)

    def figures(self) -> dict[str, Figure]:
        logits, up, prompts = self.logits, self.up, self.prompts
        figures = {
            "accuracy": mean(on_its_side(logits, up), prompts),
            "auc": auc(logits, up, prompts),
            "ups": mean(up, prompts),
            **_calibration_figures(logits, up, prompts, np.ones_like(up), low=0.0),
        }
        for name, values in (("score", logits), ("label", up)):
            figures[f"length_spearman_{name}"] = correlation(midranks(values), midranks(self.lengths), prompts)
            figures[f"length_pearson_{name}"] = correlation(values, self.lengths, prompts)
        ours, theirs = (figures[f"length_spearman_{name}"] for name in ("score", "label"))
        return figures | {"length_spearman_excess": difference(ours, theirs)}

    def details(self) -> dict[str, Any]:
        up = self.up
        return {
            "n": {"thumbs": len(up), "prompts": int(self.prompts.max()) + 1, "ups": int(up.sum())},
            "reliability": reliability(sigmoid(self.logits), up, np.ones_like(up), low=0.0),
            "length_bins": [],
        }


def on_its_side(logits: NDArray, up: NDArray) -> NDArray:
    """1 where the log-odds are on the thumb's side of 0, 0.5 on the border, else 0. (N,), (N,) -> (N,)."""
    return (1 + np.sign(logits) * (2 * up - 1)) / 2


def _mean(values: NDArray) -> float:
    return float(values.mean()) if len(values) else math.nan
