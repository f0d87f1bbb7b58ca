"""Several labelers' rankings of one prompt: their agreement, and one ranking merged from them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, permutations
from typing import Any

from rlhf_kit.data.groups import Row, levels
from rlhf_kit.data.messages import prompt_key
from rlhf_kit.errors import UserError, did_you_mean

Ballot = dict[str, int]  # answer -> rank, 1 = best, equal = tie


@dataclass(frozen=True)
class Agreement:
    """How often two labelers order two answers alike.

    `ceiling` is what a model that always says what most people say can reach against one labeler. If every labeler
    says it with the same probability p, independently of the others, two of them agree with a = p^2 + (1 - p)^2, hence
    p = (1 + sqrt(2a - 1)) / 2. An accuracy above it on one labeler's pairs is luck, or has been learnt by heart.
    """

    prompts: int  # ranked by two labelers or more
    labelers: int  # who ranked those
    pairs: int  # comparisons: two labelers, two answers, both labelers ordering them strictly
    agreement: float | None  # share of `pairs` ordered alike; None without any
    ceiling: float | None  # None without pairs, or where agreement is below 0.5: the noise is not of that kind


def agreement(rows: Iterable[Mapping[str, Any]]) -> Agreement:
    """Agreement of the labelers of rankings (`prompt`, `completions`, `ranks`, `labeler`).

    Rankings of the same answers to the same prompt are compared, whatever the order they stand in. A row without a
    `labeler` is somebody of his own; two rankings by one labeler are not compared.
    """
    agreed = total = prompts = unnamed = 0
    names: set[str] = set()
    for same in by_list(rows):
        who = [row.get("labeler") for row in same]
        compared = [pair for pair in combinations(range(len(same)), 2) if _two_people(who[pair[0]], who[pair[1]])]
        if not compared:
            continue
        prompts += 1
        names |= {str(name) for name in who if name is not None}
        unnamed = max(unnamed, who.count(None))
        ballots = [_ballot(row) for row in same]
        for one, other in compared:
            right, both = alike(list(ballots[one].values()), [ballots[other][text] for text in ballots[one]])
            agreed, total = agreed + right, total + both
    rate = agreed / total if total else None
    return Agreement(prompts, len(names) + unnamed, total, rate, None if rate is None else ceiling(rate))


def ceiling(rate: float) -> float | None:
    """`Agreement.ceiling` of a rate of agreement; None below 0.5, and where there is none (NaN)."""
    return (1 + math.sqrt(2 * rate - 1)) / 2 if rate >= 0.5 else None


def alike(one: Sequence[float], other: Sequence[float]) -> tuple[int, int]:
    """(pairs ordered alike, pairs that both order strictly) of two rankings of the same answers.

    >>> alike((1, 2, 3), (1, 3, 2))
    (2, 3)
    """
    signs = [x * y for x, y in _orders(one, other)]
    return signs.count(1), signs.count(1) + signs.count(-1)


def tau_b(one: Sequence[float], other: Sequence[float]) -> float:
    """(pairs ordered alike - pairs ordered otherwise) / sqrt(pairs that one orders * pairs that the other does).

    NaN where one of them ties everything. Source: Kendall 1945, "The Treatment of Ties in Ranking Problems".
    """
    orders = _orders(one, other)
    size = math.sqrt(sum(x != 0 for x, _ in orders) * sum(y != 0 for _, y in orders))
    return sum(x * y for x, y in orders) / size if size else math.nan


def _orders(one: Sequence[float], other: Sequence[float]) -> list[tuple[int, int]]:
    """Of every two answers 1, 0 or -1 in each of two rankings: which is larger."""
    return [((a > b) - (a < b), (c > d) - (c < d)) for (a, c), (b, d) in combinations(zip(one, other, strict=True), 2)]


def merge(rows: Iterable[Mapping[str, Any]], method: str) -> list[Row]:
    """One ranking for every list of answers to a prompt, in the order they first appear; every row is one vote.

    "mean-rank" orders by the mean of the ranks, where tied answers share the mean of the places they take up; equal
    means tie. "ranked-pairs" (Tideman 1987) locks the majorities in from the largest margin of votes to the smallest,
    leaving out those that would close a circle. Of equal margins the one whose winner has the better mean rank goes
    first, then the one whose loser has the worse, then in the order of the texts: so the order of the rows never
    counts. Answers that no locked majority parts share a rank.

    The completions stand as in the first row; `margin` and `weight` are the means of those given; `labeler` goes.
    """
    if method not in METHODS:
        hint = did_you_mean(method, METHODS)
        raise UserError(f"there is no way of merging called {method!r}; give {' or '.join(METHODS)}.{hint}")
    merged = []
    for same in by_list(rows):
        ranks = METHODS[method]([_ballot(row) for row in same])
        first = same[0]
        row = {"prompt": first["prompt"], "completions": list(first["completions"])}
        row["ranks"] = [ranks[text] for text in row["completions"]]
        for name in ("margin", "weight"):
            values = [row_[name] for row_ in same if row_.get(name) is not None]
            row |= {name: math.fsum(values) / len(values)} if values else {}
        merged.append(row)
    return merged


def by_list(rows: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Rows of the same answers to the same prompt, in any order, together."""
    lists: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        lists.setdefault((prompt_key(row["prompt"]), frozenset(row["completions"])), []).append(row)
    return list(lists.values())


def _two_people(one: Any, other: Any) -> bool:
    return one is None or other is None or one != other


def _ballot(row: Mapping[str, Any]) -> Ballot:
    return dict(zip(row["completions"], row["ranks"], strict=True))


def _mean_ranks(ballots: Sequence[Ballot]) -> dict[str, Fraction]:
    """Mean place of every answer, exact; n tied answers share the places they take up together."""
    places = {text: Fraction(0) for text in ballots[0]}
    for ballot in ballots:
        count = Counter(ballot.values())
        for text, rank in ballot.items():
            before = sum(number for other, number in count.items() if other < rank)
            places[text] += before + Fraction(count[rank] + 1, 2)
    return {text: place / len(ballots) for text, place in places.items()}


def _by_mean_rank(ballots: Sequence[Ballot]) -> Ballot:
    means = _mean_ranks(ballots)
    order = {mean: rank for rank, mean in enumerate(sorted(set(means.values())), start=1)}
    return {text: order[mean] for text, mean in means.items()}


def _by_ranked_pairs(ballots: Sequence[Ballot]) -> Ballot:
    means = _mean_ranks(ballots)
    majorities = []
    for one, other in permutations(means, 2):
        votes = sum((ballot[one] < ballot[other]) - (ballot[one] > ballot[other]) for ballot in ballots)
        if votes > 0:
            majorities.append((-votes, means[one], -means[other], one, other))
    below: dict[str, set[str]] = {text: set() for text in means}  # all that the locked majorities put below an answer
    for *_, winner, loser in sorted(majorities):
        if winner not in below[loser]:
            for text in means:
                if text == winner or winner in below[text]:
                    below[text] |= {loser} | below[loser]
    return levels(below)


METHODS: dict[str, Callable[[Sequence[Ballot]], Ballot]] = {
    "mean-rank": _by_mean_rank,
    "ranked-pairs": _by_ranked_pairs,
}
