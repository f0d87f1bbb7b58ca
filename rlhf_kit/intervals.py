"""Figures with their 95 % intervals: a bootstrap that draws whole prompts, since a prompt's lists are not independent.

A figure is a function of the prompts' weights, (D, C) -> (D,), for D draws of C prompts: all weights 1 give the
figure itself, the counts of a draw with replacement give it on that draw. All in float64.

Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3 (percentiles); drawing clusters:
Davison and Hinkley 1997, "Bootstrap Methods and their Application", section 3.8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Figure = Callable[[NDArray], NDArray]

DRAWS = 2_000
LEVEL = 0.95
BLOCK = 1 << 21  # weights held at once: 16 MB


def numbered(names: Iterable[str]) -> NDArray:
    """(N,) names as numbers from 0, in the order that they first stand there."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names])


def mean(values: ArrayLike, prompts: NDArray, weights: ArrayLike = 1.0) -> Figure:
    """Weighted mean of values (N,) that stand in prompts (N,), numbers from 0; a NaN is left out."""
    values = np.asarray(values, float)
    known = ~np.isnan(values)
    sums = _sums(prompts, (np.where(known, values * weights, 0.0), known * weights))
    return lambda draws: _ratio(*(draws @ sums).T)


def correlation(x: ArrayLike, y: ArrayLike, prompts: NDArray) -> Figure:
    """Pearson's r of x (N,) and y (N,). Of mid-ranks it is Spearman's rho; draws keep the ranks of the whole."""
    x, y = (np.asarray(values, float) - np.mean(values) for values in (x, y))
    sums = _sums(prompts, (np.ones_like(x), x, y, x * x, y * y, x * y))

    def value(draws: NDArray) -> NDArray:
        n, x, y, xx, yy, xy = (draws @ sums).T
        spread_x, spread_y = n * xx - x * x, n * yy - y * y
        # Equal numbers leave rounding errors for a spread: that is none.
        flat = (spread_x <= 1e-12 * n * xx) | (spread_y <= 1e-12 * n * yy)
        return _ratio(n * xy - x * y, np.sqrt(np.where(flat, 0.0, spread_x * spread_y)))

    return value


def calibration_error(predicted: NDArray, observed: NDArray, bins: NDArray, prompts: NDArray, weights: NDArray):
    """ECE: |mean prediction - mean outcome| of each bin, weighted by the bin's share. All (N,) -> Figure.

    Source: Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", section 3.
    """
    inside = bins[:, None] == np.arange(bins.max(initial=0) + 1)  # (N, bins)
    gaps = _sums(prompts, ((predicted - observed) * weights)[:, None].T * inside.T)
    total = _sums(prompts, (weights,))
    return lambda draws: _ratio(np.abs(draws @ gaps).sum(1), (draws @ total)[:, 0])


def auc(scores: NDArray, labels: NDArray, prompts: NDArray) -> Figure:
    """Chance that a thumbs-up scores above a thumbs-down, an equal score counting 0.5: area under the ROC curve.

    Source: Hanley and McNeil 1982, "The meaning and use of the area under a ROC curve".
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # of each distinct score
    up = labels[order].astype(float)

    def value(draws: NDArray) -> NDArray:
        weights = draws[:, prompts[order]]  # (D, N)
        ups, downs = (np.add.reduceat(weights * side, starts, axis=1) for side in (up, 1 - up))
        below = downs.cumsum(1) - downs
        return _ratio((ups * (below + downs / 2)).sum(1), ups.sum(1) * downs.sum(1))

    return value


def difference(first: Figure, second: Figure) -> Figure:
    return lambda draws: first(draws) - second(draws)


def point(figure: Figure, prompts: NDArray) -> float:
    """The figure on the data as they are; NaN where it is not defined."""
    return float(figure(np.ones((1, int(prompts.max()) + 1)))[0])


def intervals(
    figures: Mapping[str, Figure], prompts: NDArray, seed: int, draws: int = DRAWS
) -> dict[str, tuple[float, float] | None]:
    """Percentile interval of each figure, all from the same draws of prompts. None with fewer than two prompts.

    Args:
        prompts: (N,) prompt of each value, numbers from 0.
    """
    count = int(prompts.max()) + 1
    if count < 2:
        return dict.fromkeys(figures)
    generator = np.random.default_rng(seed)
    found: dict[str, list[NDArray]] = {name: [] for name in figures}
    size = max(1, BLOCK // len(prompts))
    for start in range(0, draws, size):
        rows = min(size, draws - start)
        drawn = generator.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        weights = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(float)
        for name, figure in figures.items():
            found[name].append(figure(weights))
    return {name: percentiles(np.concatenate(parts)) for name, parts in found.items()}


def crossed(runs: NDArray, prompts: NDArray, seed: int, run_seed: int) -> NDArray:
    """Means of values (S, N) of S runs on DRAWS draws of the prompts (N,) and of the runs, both with replacement: what
    other prompts and other trainings might have given. Few runs say little of their spread: it is rather too narrow.

    Args:
        seed: of the draws of prompts, the same for what is compared. run_seed: of those of runs.
    """
    count, size = int(prompts.max()) + 1, len(runs)
    weights = _drawn(count, seed)
    sums = np.stack([np.bincount(prompts, weights=values, minlength=count) for values in runs], axis=1)
    means = (weights @ sums) / (weights @ np.bincount(prompts))[:, None]  # (D, S)
    picked = np.random.default_rng(run_seed).integers(size, size=(DRAWS, size))
    return np.take_along_axis(means, picked, axis=1).mean(axis=1)


@lru_cache(maxsize=4)
def _drawn(count: int, seed: int) -> NDArray:
    """How often each of so many prompts is in each draw, (D, C); many figures are of the same draws."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS)


def percentiles(values: NDArray) -> tuple[float, float] | None:
    """The interval that draws (D,) of a figure lie in."""
    values = values[np.isfinite(values)]  # a perplexity may be beyond all numbers
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def side(interval: tuple[float, float] | None) -> int:
    """1 or -1 where an interval lies above or below 0; 0 where it cannot be told."""
    if interval is None:
        return 0
    low, high = interval
    return (low > 0) - (high < 0)


def _sums(prompts: NDArray, columns) -> NDArray:
    """Sums of each column (N,) by prompt. -> (C, columns)."""
    return np.stack([np.bincount(prompts, weights=column) for column in columns], axis=1)


def _ratio(top: NDArray, bottom: NDArray) -> NDArray:
    return np.divide(top, bottom, out=np.full_like(top, math.nan), where=bottom != 0)
