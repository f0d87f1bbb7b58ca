"""The table of what was measured: means over seeds with intervals, the score of guessing, and what may be claimed.

An interval is a bootstrap that draws passages and, of each row, seeds, both with replacement: what other passages and
other trainings might have given. Few seeds say little about a training's spread, so it is rather too narrow.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_kit.eval.items import read_results
from rlhf_kit.eval.scorers import Score
from rlhf_kit.eval.transfer.config import FIRST, QANET, Cell, Row, Table, Test
from rlhf_kit.intervals import crossed, numbered, percentiles

GATE = 25.0  # points of exact match above guessing, in the language that was learned, before transfer is claimed
KEPT, TURNED, OPEN = "kept", "turned round", "cannot be told"
Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and questions, 0 to 100, with its 95 % interval (None with one passage)."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Figure:
    """A row's figures in a test by one scorer.

    Args:
        n: {"questions", "passages", "references"}; references over all questions.
        published: (EM, F1), where the table tells it, by the test's first scorer.
    """

    row: str
    test: str
    scorer: str
    em: Estimate
    f1: Estimate
    n: Mapping[str, int]
    seeds: tuple[int, ...]
    published: tuple[float, float] | None = None


@dataclass(frozen=True)
class Gate:
    """Whether a row reads the language it has learned: its exact match `above` guessing in a test of that language."""

    row: str
    test: str
    em: float
    guess: float

    @property
    def above(self) -> float:
        return self.em - self.guess

    @property
    def passed(self) -> bool:
        return self.above >= GATE


@dataclass(frozen=True)
class Transfer:
    """A row in a test of a language that it was not fine-tuned on. `above`: its exact match minus guessing, in points.

    Args:
        gates: of the row, in the languages it was fine-tuned on. None can be had without a baseline.
    """

    row: str
    test: str
    em: Estimate
    above: Estimate | None
    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool | None:
        return all(gate.passed for gate in self.gates) if self.gates else None


@dataclass(frozen=True)
class Order:
    """Two rows of which the published F1 of `better` is the higher. `difference`: here, of F1, better minus worse."""

    test: str
    better: str
    worse: str
    published: float
    difference: Estimate

    @property
    def verdict(self) -> str:
        if self.difference.interval is None or self.difference.interval[0] <= 0 <= self.difference.interval[1]:
            return OPEN
        return KEPT if self.difference.value > 0 else TURNED


@dataclass(frozen=True)
class Report:
    """All that the table says.

    Args:
        guesses: test -> EM and F1 of guessing.
        humans: test -> EM and F1 of people, as measured on the data where there are two answers to a question.
        skipped: rows whose checkpoint this copy of the kit lacks.
        cells: finished and all.
    """

    name: str
    table: Table
    figures: tuple[Figure, ...]
    guesses: Mapping[str, Score]
    humans: Mapping[str, Mapping[str, float]]
    transfers: tuple[Transfer, ...]
    orders: tuple[Order, ...]
    skipped: tuple[str, ...]
    cells: tuple[int, int]
    reportable: bool


class Measured:
    """The scores of all finished cells, by row and test, and draws of passages that all rows of a test share."""

    def __init__(self, table: Table, cells: Sequence[Cell], output: Path):
        self.scores: dict[tuple[str, str], dict[str, NDArray]] = {}  # name of a score -> (seeds, questions)
        self.seeds: dict[str, tuple[int, ...]] = {}  # of a row
        self.clusters: dict[str, NDArray] = {}
        self.details: dict[str, dict[str, Any]] = {}
        scores: dict[tuple[str, str], list[list[Mapping[str, float]]]] = {}
        for cell in cells:
            self.seeds[cell.row.name] = (*self.seeds.get(cell.row.name, ()), cell.seed)
            for test in table.tests:
                record, items = read_results(cell.folder(output) / test.name)
                scores.setdefault((cell.row.name, test.name), []).append([item.scores for item in items])
                self.clusters[test.name] = numbered(item.cluster for item in items)
                self.details[test.name] = record["details"]
        for place, seeds in scores.items():
            self.scores[place] = {
                name: 100 * np.array([[one[name] for one in items] for items in seeds]) for name in seeds[0][0]
            }

    def estimate(self, test: str, row: str, score: str, less: str | NDArray | None = None) -> Estimate:
        """Of a row, or with `less` of its difference from another row, or from a constant for each question."""
        clusters, values = self.clusters[test], self.scores[row, test][score]
        value, draws = values.mean(), _drawn(values, clusters, test, row)
        if isinstance(less, str):
            theirs = self.scores[less, test][score]
            value, draws = value - theirs.mean(), draws - _drawn(theirs, clusters, test, less)
        elif less is not None:
            value, draws = value - less.mean(), draws - _drawn(less[None], clusters, test, "")
        return Estimate(float(value), percentiles(draws) if clusters.max() else None)


def _drawn(scores: NDArray, clusters: NDArray, test: str, row: str) -> NDArray:
    """Means on draws of passages, the same for all rows of a test, and of seeds, which are each row's own."""
    return crossed(scores, clusters, zlib.crc32(test.encode()), zlib.crc32(f"{test} {row}".encode()))


# --- what is said ---------------------------------------------------------------------------------------------------


def figures(table: Table, measured: Measured) -> list[Figure]:
    rows = []
    for row in table.rows:
        for test in table.tests:
            if (row.name, test.name) not in measured.scores:
                continue
            clusters = measured.clusters[test.name]
            references = round(measured.details[test.name]["references_a_question"] * len(clusters))
            n = {"questions": len(clusters), "passages": int(clusters.max()) + 1}
            for number, scorer in enumerate(test.scorers):
                names = [f"{scorer} {name}" if number else name for name in ("em", "f1")]
                em_and_f1 = [measured.estimate(test.name, row.name, name) for name in names]
                published = row.published.get(test.name) if not number else None
                used = len(clusters) if scorer.endswith(FIRST) else references
                rows.append(
                    Figure(
                        row.name,
                        test.name,
                        scorer,
                        *em_and_f1,
                        {**n, "references": used},
                        measured.seeds[row.name],
                        published,
                    )
                )
    return rows


def gates(table: Table, row: Row, measured: Measured, guesses: Mapping[str, Score]) -> tuple[Gate, ...]:
    """One for each test in a language that the row was fine-tuned on, where guessing can be computed."""
    return tuple(
        Gate(row.name, test.name, float(measured.scores[row.name, test.name]["em"].mean()), guesses[test.name].em)
        for test in table.tests
        if test.language in table.languages(row) and test.name in guesses
    )


def transfers(table: Table, measured: Measured, guesses: Mapping[str, Score]) -> list[Transfer]:
    """Every row in every test of a language that it was not fine-tuned on; those without pre-training are controls."""
    rows = []
    for row in table.rows:
        for test in table.tests:
            if (row.name, test.name) not in measured.scores or test.language in table.languages(row):
                continue
            if row.from_scratch or row.model == QANET:
                continue
            above = None
            if test.name in guesses:
                constant = np.full(len(measured.clusters[test.name]), guesses[test.name].em)
                above = measured.estimate(test.name, row.name, "em", constant)
            em = measured.estimate(test.name, row.name, "em")
            rows.append(Transfer(row.name, test.name, em, above, gates(table, row, measured, guesses)))
    return rows


def orders(table: Table, measured: Measured) -> list[Order]:
    """Every two rows with a published F1 in the same test, the higher one first; equal ones have no order."""
    found = []
    for test in table.tests:
        rows = [row for row in table.rows if test.name in row.published and (row.name, test.name) in measured.scores]
        for pair in combinations(rows, 2):
            worse, better = sorted(pair, key=lambda row: row.published[test.name][1])
            apart = better.published[test.name][1] - worse.published[test.name][1]
            if apart:
                difference = measured.estimate(test.name, better.name, "f1", worse.name)
                found.append(Order(test.name, better.name, worse.name, apart, difference))
    return found


def humans(table: Table, measured: Measured) -> dict[str, dict[str, float]]:
    by_test = {test.name: measured.details.get(test.name, {}).get("human") for test in table.tests}
    return {name: human for name, human in by_test.items() if human}


def of_test(table: Table, name: str) -> Test:
    return next(test for test in table.tests if test.name == name)


def summed_up(
    name: str, table: Table, done: Sequence[Cell], cells: int, output: Path, guesses: Mapping[str, Score],
    skipped: Sequence[str], reportable: bool,
) -> Report:  # fmt: skip
    """The report of the cells that are finished, which lie in `output`."""
    measured = Measured(table, done, output)
    return Report(
        name, table, tuple(figures(table, measured)), guesses, humans(table, measured),
        tuple(transfers(table, measured, guesses)), tuple(orders(table, measured)), tuple(skipped),
        (len(done), cells), reportable,
    )  # fmt: skip
