"""Agreement statistics: by hand, against plain implementations written here, and on rankings of known noise."""

import math
import random
from collections import Counter
from itertools import combinations, permutations

import numpy as np
import pytest

from rlhf_kit.data.labels.agreement import (
    Ballot,
    alike,
    bradley_terry,
    krippendorff,
    means,
    report,
    shares,
    tau_b,
)


def ballot(task: int, labeler: str, *ranks: int, **others) -> Ballot:
    return Ballot(task, labeler, ranks, **others)


# --- two rankings, by hand ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((1, 2, 3), (1, 2, 3), (3, 3)),
        ((1, 2, 3), (3, 2, 1), (0, 3)),
        ((1, 2, 3), (1, 3, 2), (2, 3)),
        ((1, 1, 2), (1, 2, 3), (2, 2)),  # a tie of one of them is no pair
        ((1, 1, 1), (1, 2, 3), (0, 0)),
        ((1, 2, 2, 3), (2, 1, 1, 3), (3, 5)),
    ],
)
def test_pairs_that_are_ordered_alike(one, other, expected):
    assert alike(one, other) == alike(other, one) == expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 4), 1.0),
        ((1, 2, 3, 4), (4, 3, 2, 1), -1.0),
        ((1, 2, 3, 4), (1, 2, 4, 3), 4 / 6),
        # 5 pairs untied in one, 6 in the other: 5 agree
        ((1, 2, 2, 3), (1, 2, 3, 4), 5 / math.sqrt(5 * 6)),
        ((1, 1, 2, 2), (1, 2, 1, 2), 0.0),
    ],
)
def test_tau_b(one, other, expected):
    assert tau_b(one, other) == pytest.approx(expected)


def test_a_ranking_without_order_has_no_tau():
    assert math.isnan(tau_b((1, 1, 1), (1, 2, 3)))


def test_shares_weigh_by_pairs_and_means_by_rankings():
    measure = shares([(1, 1, 1), (2, 1, 3), (3, 0, 0)])
    assert measure.value == pytest.approx(2 / 4) and measure.n == 4
    measure = means([(1, 1.0), (2, 0.0), (3, math.nan)])
    assert measure.value == 0.5 and measure.n == 2
    assert math.isnan(shares([]).value) and math.isnan(means([(1, math.nan)]).value)


def test_one_task_has_no_interval():
    assert shares([(1, 1, 2)]).interval is None


# --- Krippendorff's alpha -------------------------------------------------------------------------------------------


def plain_alpha(units: list[list[int]]) -> float:
    """Ordinal alpha from the definition (Krippendorff 2018, chapter 12): 1 - D_o / D_e over pairs of values."""
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    counts = Counter(values)

    def delta(c: int, k: int) -> float:
        low, high = min(c, k), max(c, k)
        between = sum(counts[value] for value in counts if low <= value <= high)
        return (between - (counts[low] + counts[high]) / 2) ** 2

    observed = sum(delta(*pair) / (len(unit) - 1) for unit in units for pair in permutations(unit, 2))
    expected = sum(delta(*pair) for pair in permutations(values, 2)) / (len(values) - 1)
    return 1 - observed / expected


def test_alpha_of_a_published_table():
    """Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: ordinal alpha 0.815."""
    table = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    units = [[row[at] for row in table if row[at] is not None] for at in range(12)]
    assert plain_alpha(units) == pytest.approx(0.815, abs=5e-4)
    ballots = [
        Ballot(at, f"labeler {number}", (row[at],)) for number, row in enumerate(table) for at in range(12) if row[at]
    ]
    assert krippendorff(ballots).value == pytest.approx(0.815, abs=5e-4)


def test_alpha_is_that_of_a_plain_implementation():
    ballots = simulated(40, labelers=6, per_task=3, noise=1.0, seed=3)
    units: dict = {}
    for each in ballots:
        for answer, rank in enumerate(each.ranks):
            units.setdefault((each.task, answer), []).append(rank)
    measure = krippendorff(ballots)
    assert measure.value == pytest.approx(plain_alpha(list(units.values())))
    assert measure.interval[0] < measure.value < measure.interval[1]


def test_alpha_needs_two_labelers_and_two_ranks():
    assert math.isnan(krippendorff([ballot(1, "amy", 1, 2)]).value)
    assert math.isnan(krippendorff([ballot(1, "amy", 1, 1), ballot(1, "bob", 1, 1)]).value)


# --- Bradley and Terry ----------------------------------------------------------------------------------------------


def plain_bradley_terry(names: list[str], wins: dict[tuple[str, str], float]) -> dict[str, float]:
    """Minorisation-maximisation (Hunter 2004, section 2), as logits around 0."""
    strength = dict.fromkeys(names, 1.0)
    for _ in range(20_000):
        strength = {
            one: sum(wins.get((one, other), 0) for other in names if other != one)
            / sum(
                (wins.get((one, other), 0) + wins.get((other, one), 0)) / (strength[one] + strength[other])
                for other in names
                if other != one
            )
            for one in names
        }
        total = sum(strength.values())
        strength = {name: value / total for name, value in strength.items()}
    middle = sum(map(math.log, strength.values())) / len(names)
    return {name: math.log(value) - middle for name, value in strength.items()}


def test_strengths_of_two_by_hand():
    """Three wins of four, and the prior's half a tie: 3.25 to 1.25, logits apart by log(2.6)."""
    two = {"sources": (("x",), ("y",))}
    ballots = [ballot(at, "amy", 1, 2, **two) for at in range(3)] + [ballot(3, "amy", 2, 1, **two)]
    strengths = bradley_terry(ballots)
    assert list(strengths) == ["x", "y"]
    assert strengths["x"].value - strengths["y"].value == pytest.approx(math.log(3.25 / 1.25), abs=1e-4)
    assert strengths["x"].n == 4


def test_strengths_are_those_of_a_plain_implementation():
    generator = random.Random(0)
    names = ["w", "x", "y", "z"]
    ballots = []
    for task in range(40):
        ranks = [1, 2, 3, 3] if task % 4 == 0 else [1, 2, 3, 4]
        generator.shuffle(ranks)
        ballots.append(ballot(task, "amy", *ranks, sources=tuple((name,) for name in names)))
    wins: dict[tuple[str, str], float] = {}
    for one, other in permutations(names, 2):
        wins[one, other] = 0.25  # of the tie between every two
    for each in ballots:
        for a, b in permutations(range(4), 2):
            won = 1.0 if each.ranks[a] < each.ranks[b] else 0.5 if each.ranks[a] == each.ranks[b] else 0.0
            wins[names[a], names[b]] += won / 6
    expected = plain_bradley_terry(names, wins)
    assert {name: measure.value for name, measure in bradley_terry(ballots).items()} == pytest.approx(
        expected, abs=1e-3
    )


def test_one_that_never_loses_has_a_finite_strength():
    strengths = bradley_terry([ballot(at, "amy", 1, 2, sources=(("x",), ("y",))) for at in range(20)])
    assert 2 < strengths["x"].value < 10


def test_an_answer_of_two_sources_counts_for_both_and_not_against_itself():
    strengths = bradley_terry([ballot(at, "amy", 1, 2, sources=(("x", "y"), ("z",))) for at in range(9)])
    assert strengths["x"].value == pytest.approx(strengths["y"].value, abs=1e-6) and strengths["z"].value < 0
    assert bradley_terry([ballot(1, "amy", 1, 2, sources=(("x",), ("x",)))]) == {}


# --- rankings of known noise ----------------------------------------------------------------------------------------


def simulated(
    tasks: int, labelers: int = 20, per_task: int = 5, noise: float = 0.5, bias: float = 0.0, seed: int = 0, k: int = 4
) -> list[Ballot]:
    """Labelers who see a quality, N(0, 1), through N(0, noise^2) of their own, less `bias` for each place down."""
    generator = np.random.default_rng(seed)
    ballots = []
    for task in range(tasks):
        quality = generator.normal(size=k)
        for labeler in generator.choice(labelers, size=per_task, replace=False):
            places = generator.permutation(k)
            utility = quality + noise * generator.normal(size=k) - bias * places
            ranks = np.argsort(np.argsort(-utility)) + 1
            ballots.append(
                Ballot(
                    task, f"labeler {labeler}", tuple(map(int, ranks)), tuple(map(int, places)),
                    tuple(map(int, generator.integers(20, 200, size=k))), tuple((f"model {at}",) for at in range(k)),
                )
            )  # fmt: skip
    return ballots


def true_agreement(noise: float) -> float:
    """Of two labelers on two answers: both see the quality's difference d through N(0, 2 noise^2) of their own."""
    d = np.random.default_rng(1).normal(scale=math.sqrt(2), size=400_000)
    right = 0.5 * (1 + np.vectorize(math.erf)(d / (math.sqrt(2) * noise) / math.sqrt(2)))
    return float((right**2 + (1 - right) ** 2).mean())


@pytest.mark.timeout(300)
def test_the_true_agreement_lies_in_the_interval():
    """5,000 rankings a repeat, 100 repeats: at least 90 of the 95 % intervals hold the truth."""
    truth, held = true_agreement(0.8), 0
    for seed in range(100):
        ballots = simulated(1000, noise=0.8, seed=seed)
        assert len(ballots) == 5000
        pairs = []
        for same in zip(*[iter(ballots)] * 5, strict=True):
            pairs += [(one.task, *alike(one.ranks, other.ranks)) for one, other in combinations(same, 2)]
        low, high = shares(pairs, seed).interval
        held += low <= truth <= high
    assert held >= 90


def test_a_report_of_two_labelers_by_hand():
    same = {"places": (0, 1, 2), "lengths": (30, 20, 10)}
    made = report([ballot(1, "amy", 1, 2, 3, **same, seconds=10.0), ballot(1, "bob", 1, 3, 2, **same, seconds=30.0),
                   ballot(2, "amy", 1, 2, 3, **same, seconds=20.0)])  # fmt: skip
    assert made.rankings == 3 and made.agreement.value == pytest.approx(2 / 3) and made.agreement.n == 3
    assert made.tau.value == pytest.approx(1 / 3)
    assert made.position.value == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert made.length.value == pytest.approx(-(1 + 1 / 3 + 1) / 3)
    assert made.ceiling == pytest.approx((1 + math.sqrt(2 * 2 / 3 - 1)) / 2)
    amy = made.labelers["amy"]
    assert (amy.decisions, amy.seconds, amy.against_others.value) == (2, 15.0, pytest.approx(2 / 3))


@pytest.mark.parametrize("seed", range(5))
def test_a_bias_to_the_place_that_was_put_in_is_found(seed):
    low, _ = report(simulated(200, per_task=3, bias=0.3, seed=seed)).position.interval
    assert low > 0


def test_none_that_was_not_put_in_is_found():
    """Of 20 reports without a bias at most three have an interval beside 0: more has a chance of 1.6 %."""
    beside = 0
    for seed in range(20):
        pairs = [(each.task, tau_b(each.ranks, each.places)) for each in simulated(200, per_task=3, seed=100 + seed)]
        low, high = means(pairs, seed).interval
        beside += not low <= 0 <= high
    assert beside <= 3


def test_sources_are_ordered_by_their_strength():
    generator = np.random.default_rng(0)
    ballots = []
    for task in range(200):
        utility = np.array([1.0, 0.5, 0.0, -0.5]) + generator.normal(size=4)
        ranks = tuple(int(rank) for rank in np.argsort(np.argsort(-utility)) + 1)
        ballots.append(ballot(task, "amy", *ranks, sources=(("a",), ("b",), ("c",), ("d",))))
    strengths = bradley_terry(ballots)
    assert list(strengths) == ["a", "b", "c", "d"]
    assert all(low < measure.value < high for measure in strengths.values() for low, high in [measure.interval])
