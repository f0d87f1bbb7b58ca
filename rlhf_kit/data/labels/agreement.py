"""How far labelers agree, with others and with themselves, and what their rankings say of the sources.

All intervals are 95 % and by a bootstrap over tasks (`rlhf_kit.intervals`), for a task's rankings are not independent;
Krippendorff's alpha has its own (Krippendorff 2006), by evalica.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import median

import evalica
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rlhf_kit.data.labelers import alike, ceiling, tau_b
from rlhf_kit.data.labels import schema
from rlhf_kit.data.labels.store import Decision, Store, Task
from rlhf_kit.intervals import Figure, intervals, mean, numbered, point

PRIOR = 0.5  # weight of the tie that every two sources are given, so that all strengths are finite
DRAWS = 200  # of a Bradley-Terry fit, each of which takes milliseconds
Interval = tuple[float, float] | None
THUMB_RANKS = {True: (1, 2), False: (2, 1)}  # of an answer, and of one that is neither good nor bad


@dataclass(frozen=True)
class Ballot:
    """One ranking of a task, or a thumb. Tuples are by answer, in the order the answers were added.

    Args:
        ranks: 1 = best, equal = tie, of a thumb one of THUMB_RANKS; places: from 0, where it was shown.
        sources: names of what wrote each answer.
        seconds: from opening to submitting; None = not known.
    """

    task: int
    labeler: str
    ranks: tuple[int, ...]
    places: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    sources: tuple[tuple[str, ...], ...] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class Measure:
    """A figure; NaN where nothing measures it. `n`: how many comparisons or rankings it is of."""

    value: float
    interval: Interval = None
    n: int = 0


@dataclass(frozen=True)
class LabelerReport:
    """`against_others`: pairs ordered as the other labelers of the same task order them; `gold`, `repeats`: share of
    the pairs of gold tasks, and of tasks given again, that are ordered as known, and as before. A thumb is a pair."""

    decisions: int
    seconds: float | None  # median
    against_others: Measure
    gold: Measure
    repeats: Measure


@dataclass(frozen=True)
class Report:
    """Figures of all labelers.

    Args:
        agreement: share of pairs that two labelers order alike, of those that both order.
        tau: mean Kendall's tau-b of two labelers' rankings; alpha: Krippendorff's, of ordinal ranks.
        position: mean tau-b of an answer's rank with the place where it was shown: above 0 the first do better.
        length: the same with its length in characters: above 0 the short do better.
        sources: strengths of Bradley and Terry, in logits around a mean of 0.
        thumbs: share of answers to which two labelers give the same thumb.
    """

    rankings: int
    labelers: dict[str, LabelerReport]
    agreement: Measure
    tau: Measure
    alpha: Measure
    position: Measure
    length: Measure
    sources: dict[str, Measure] = field(default_factory=dict)
    thumbs: Measure = Measure(math.nan)

    @property
    def ceiling(self) -> float | None:
        """Accuracy that a model which always says what most people say can reach against one of them."""
        return ceiling(self.agreement.value)


def report(ballots: Sequence[Ballot], seed: int = 0, thumbs: Sequence[Ballot] = ()) -> Report:
    """Every figure of normal tasks' rankings and thumbs; what only a store knows is added by `report_of`."""
    pairs, of_thumbs = pairs_of(ballots), pairs_of(thumbs)
    both, both_pairs = [*ballots, *thumbs], [*pairs, *of_thumbs]
    return Report(
        rankings=len(ballots),
        labelers={name: _labeler(name, both, both_pairs) for name in sorted({ballot.labeler for ballot in both})},
        agreement=shares([(one.task, *alike(one.ranks, other.ranks)) for one, other in pairs], seed),
        tau=means([(one.task, tau_b(one.ranks, other.ranks)) for one, other in pairs], seed),
        alpha=krippendorff(ballots, seed),
        position=means([(each.task, tau_b(each.ranks, each.places)) for each in ballots if each.places], seed),
        length=means([(each.task, tau_b(each.ranks, each.lengths)) for each in ballots if each.lengths], seed),
        sources=bradley_terry(ballots, seed),
        thumbs=shares([(one.task, *alike(one.ranks, other.ranks)) for one, other in of_thumbs], seed),
    )


def pairs_of(ballots: Sequence[Ballot]) -> list[tuple[Ballot, Ballot]]:
    """Every two rankings of one task by two labelers."""
    by_task: dict[int, list[Ballot]] = defaultdict(list)
    for ballot in ballots:
        by_task[ballot.task].append(ballot)
    return [
        (one, other)
        for same in by_task.values()
        for one, other in combinations(same, 2)
        if one.labeler != other.labeler
    ]


def against_others(name: str, pairs: Sequence[tuple[Ballot, Ballot]]) -> Measure:
    """Pairs of answers that a labeler orders as the other labelers of the same task do."""
    return shares([(a.task, *alike(a.ranks, b.ranks)) for a, b in pairs if name in (a.labeler, b.labeler)])


def _labeler(name: str, ballots: Sequence[Ballot], pairs: Sequence[tuple[Ballot, Ballot]]) -> LabelerReport:
    own = [ballot for ballot in ballots if ballot.labeler == name]
    seconds = [ballot.seconds for ballot in own if ballot.seconds is not None]
    unknown = Measure(math.nan)  # until the store is asked
    return LabelerReport(len(own), median(seconds) if seconds else None, against_others(name, pairs), unknown, unknown)


# --- figures with intervals -----------------------------------------------------------------------------------------


def shares(counts: Sequence[tuple[int, int, int]], seed: int = 0) -> Measure:
    """Of (task, hits, of how many): all hits over all of them."""
    counted = [(task, hits / total, total) for task, hits, total in counts if total]
    if not counted:
        return Measure(math.nan)
    tasks, values, weights = zip(*counted, strict=True)
    numbers = numbered(map(str, tasks))
    return _measured(mean(values, numbers, np.asarray(weights, float)), numbers, seed, sum(weights))


def means(values: Sequence[tuple[int, float]], seed: int = 0) -> Measure:
    """Of (task, value): the mean of those that are defined."""
    known = [(task, value) for task, value in values if not math.isnan(value)]
    if not known:
        return Measure(math.nan)
    numbers = numbered(str(task) for task, _ in known)
    return _measured(mean([value for _, value in known], numbers), numbers, seed, len(known))


def _measured(figure: Figure, tasks: NDArray, seed: int, n: int) -> Measure:
    return Measure(point(figure, tasks), intervals({"": figure}, tasks, seed)[""], n)


def krippendorff(ballots: Sequence[Ballot], seed: int = 0) -> Measure:
    """Alpha of the ranks, on an ordinal scale; a unit is an answer (Krippendorff 2018, chapter 12)."""
    ranks: dict[tuple[int, int], dict[str, int]] = defaultdict(dict)
    for ballot in ballots:
        for answer, rank in enumerate(ballot.ranks):
            ranks[ballot.task, answer][ballot.labeler] = rank
    units = {unit: of_unit for unit, of_unit in ranks.items() if len(of_unit) > 1}
    if not units or len({rank for of_unit in units.values() for rank in of_unit.values()}) < 2:
        return Measure(math.nan)
    frame = pd.DataFrame({number: of_unit for number, of_unit in enumerate(units.values())}).astype("float64")
    drawn = evalica.alpha_bootstrap(frame, "ordinal", n_resamples=1000, random_state=seed)
    return Measure(float(drawn.alpha), (float(drawn.low), float(drawn.high)), len(units))


def bradley_terry(ballots: Sequence[Ballot], seed: int = 0) -> dict[str, Measure]:
    """Strengths of the sources by all pairs of a ranking, each ranking weighing 1; strongest first.

    An answer that several sources wrote counts for each, and not against itself. Bradley and Terry 1952, a tie as half
    a win for each.
    """
    games = [(ballot.task, *game) for ballot in ballots for game in _games(ballot)]
    names = sorted({name for _, _, *two, _ in games for name in two})
    if len(names) < 2:
        return {}
    tasks = numbered(str(task) for task, *_ in games)
    results = sorted({tuple(result) for _, _, *result in games})  # the same result of two sources is added up
    numbers = np.array([results.index(tuple(result)) for _, _, *result in games])
    weights = np.array([weight for _, weight, *_ in games])
    generator, count = np.random.default_rng(seed), int(tasks.max()) + 1

    def strengths(draw: NDArray) -> NDArray:
        """(S,) in logits. draw: (G,), how often each game is there."""
        return _fitted(names, results, np.bincount(numbers, draw * weights, len(results)))

    whole = strengths(np.ones(len(games)))
    draws = [np.bincount(generator.integers(count, size=count), minlength=count)[tasks] for _ in range(DRAWS)]
    bounds = np.quantile([strengths(draw) for draw in draws], [0.025, 0.975], axis=0).T
    played = {name: sum(name in game[2:4] for game in games) for name in names}
    return {
        names[at]: Measure(float(whole[at]), tuple(map(float, bounds[at])) if count > 1 else None, played[names[at]])
        for at in np.argsort(-whole, kind="stable")
    }


Result = tuple[str, str, int]  # one, other, and 1 where one wins, -1 where the other does, 0 for a tie


def _games(ballot: Ballot) -> list[tuple[float, str, str, int]]:
    """(weight, one, other, who won) of every two sources of a ranking."""
    if not ballot.sources:
        return []
    games = [
        (one, other, (ballot.ranks[b] > ballot.ranks[a]) - (ballot.ranks[b] < ballot.ranks[a]))
        for a, b in combinations(range(len(ballot.ranks)), 2)
        for one in ballot.sources[a]
        for other in ballot.sources[b]
        if one != other
    ]
    return [(1 / len(games), *game) for game in games]


def _fitted(names: Sequence[str], results: Sequence[Result], weights: NDArray) -> NDArray:
    ties = list(combinations(names, 2))
    winners = {1: evalica.Winner.X, -1: evalica.Winner.Y, 0: evalica.Winner.Draw}
    fitted = evalica.bradley_terry(
        [one for one, _, _ in results] + [one for one, _ in ties],
        [other for _, other, _ in results] + [other for _, other in ties],
        [winners[won] for *_, won in results] + [evalica.Winner.Draw] * len(ties),
        weights=[*weights, *[PRIOR] * len(ties)],
        tolerance=1e-8,
        limit=10_000,
    )
    logits = np.log(fitted.scores.loc[list(names)].to_numpy())
    return logits - logits.mean()


# --- of a store -----------------------------------------------------------------------------------------------------


def own_agreement(store: Store, labeler: int) -> Measure:
    """How far one labeler agrees with the others: what everybody may know of themselves, without the whole report."""
    tasks, names, decisions = _decided(store)
    return against_others(names[labeler], pairs_of(_normal(tasks, names, decisions)))


def report_of(store: Store, seed: int = 0) -> Report:
    """The report of a store's rankings and thumbs, with each labeler's gold tasks and hidden repeats."""
    tasks, names, decisions = _decided(store)
    first = [each for each in decisions if each.turn == 0]
    normal = _normal(tasks, names, decisions)
    rankings, thumbs = ([one for one in normal if tasks[one.task].kind == kind] for kind in schema.KINDS)
    made = report(rankings, seed, thumbs)
    gold: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for each in first:
        if (task := tasks[each.task]).mode == schema.GOLD:
            known = THUMB_RANKS[bool(task.gold[0])] if task.kind == schema.THUMBS else task.gold
            gold[names[each.labeler]].append((each.task, *alike(ballot_of(each, task, names).ranks, known)))
    before = {(each.task, each.labeler): each for each in first}
    repeats: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for each in decisions:
        was = before.get((each.task, each.labeler))
        if each.turn == 1 and was is not None:
            ranks = [ballot_of(one, tasks[each.task], names).ranks for one in (was, each)]
            repeats[names[each.labeler]].append((each.task, *alike(*ranks)))
    unmeasured = _labeler("", (), ())  # whose gold tasks alone are decided
    labelers = {
        name: replace(made.labelers.get(name, unmeasured), gold=shares(gold[name]), repeats=shares(repeats[name]))
        for name in sorted({names[each.labeler] for each in decisions})
    }
    return replace(made, labelers=labelers)


def _decided(store: Store) -> tuple[dict[int, Task], dict[int, str], list[Decision]]:
    """Tasks by id, names of labelers by id, and all decisions that are rankings or thumbs."""
    names = {number: name for number, (name, _) in store.labelers().items()}
    return store.tasks(), names, [each for each in store.decisions() if each.kind in (schema.RANKED, schema.THUMB)]


def _normal(tasks: Mapping[int, Task], names: Mapping[int, str], decisions: Sequence[Decision]) -> list[Ballot]:
    """Without gold tasks, examples and hidden repeats."""
    return [
        ballot_of(each, tasks[each.task], names)
        for each in decisions
        if each.turn == 0 and tasks[each.task].mode == schema.NORMAL
    ]


def ballot_of(decision: Decision, task: Task, names: Mapping[int, str]) -> Ballot:
    seconds = None if decision.opened is None else decision.submitted - decision.opened
    if decision.kind == schema.THUMB:
        return Ballot(task.id, names[decision.labeler], THUMB_RANKS[decision.content["label"]], seconds=seconds)
    ranks = decision.content["ranks"]
    return Ballot(
        task=task.id,
        labeler=names[decision.labeler],
        ranks=tuple(ranks[str(answer.id)] for answer in task.answers),
        places=tuple(decision.presented.index(answer.id) for answer in task.answers),
        lengths=tuple(len(answer.text) for answer in task.answers),
        sources=tuple(
            tuple(dict.fromkeys(str(one.get("model", "?")) for one in answer.sources)) for answer in task.answers
        ),
        seconds=seconds,
    )
