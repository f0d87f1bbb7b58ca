"""The questions that a table names, each source read once, and the score of guessing on the world's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rlhf_kit import world
from rlhf_kit.data.sources import WORLD, WORLD_SPLITS, pinned
from rlhf_kit.errors import HubUnreachableError, UserError, did_you_mean
from rlhf_kit.eval import results
from rlhf_kit.eval.extractive.data import WORLD_KINDS, Counts, Question, questions_of, read_questions
from rlhf_kit.eval.scorers import SCORERS, Score, Scorer
from rlhf_kit.eval.transfer.config import FIRST, Data, Table, Test
from rlhf_kit.eval.transfer.word_order import reorder
from rlhf_kit.eval.type_guess import guess_score, type_guess

PLACE = "{data}"


@dataclass(frozen=True)
class Read:
    """Questions of a `Data` or `Test`, and what was found in reading them."""

    questions: list[Question]
    counts: Counts
    source: str  # of the hub with its commit, else as the table has it

    @cached_property
    def hash(self) -> str:
        return results.fingerprint([asdict(question) for question in self.questions])


def read_all(table: Table, data_dir: Path | None, limit: int | None) -> dict[str, dict[str, Read]]:
    """{"data": {name: Read}, "tests": {name: Read}} of what the table's rows need, before anything is trained.

    Raises:
        UserError: with every source that cannot be read.
    """
    needed = {name for row in table.rows for name in row.fine_tuned_on}
    found: dict[str, dict[str, Read]] = {"data": {}, "tests": {}}
    faults = []
    for key, sources in (("data", [one for one in table.data if one.name in needed]), ("tests", table.tests)):
        for one in sources:
            try:
                found[key][one.name] = read(one, data_dir, limit if key == "tests" else None)
            except UserError as error:
                faults.append(f"{key}, {one.name}: {error}")
    if faults:
        raise UserError("\n".join(faults))
    return found


def read(one: Data | Test, data_dir: Path | None = None, limit: int | None = None) -> Read:
    """Raises UserError, also where the source needs a folder that was not given."""
    named = source = one.source
    if PLACE in source:
        if data_dir is None:
            raise UserError(
                f"{source} is a local file; give the folder of {PLACE} with --data_dir. 請用 --data_dir 指定資料夾。"
            )
        source = source.replace(PLACE, str(data_dir))
    if source.partition(":")[0] == WORLD:
        questions, counts = _of_world(source, one.split, one.size)
    else:
        with suppress(HubUnreachableError):  # what reads it says so, where the cache has none
            source = pinned(source)
        named = one.source if PLACE in one.source else source
        questions, counts = read_questions(source, one.split, on_bad_row=one.on_bad_row)
    questions = questions[: one.size][:limit]
    if isinstance(one, Data) and one.word_order:
        questions = [reorder(question, one.word_order) for question in questions]
    return Read(questions, counts, named)


def _of_world(source: str, split: str, size: int | None) -> tuple[list[Question], Counts]:
    kind = source.partition(":")[2]
    if kind not in WORLD_KINDS:
        hint = did_you_mean(kind, WORLD_KINDS)
        raise UserError(
            f"{source}: the world has no such questions about passages.{hint} Give one of {', '.join(WORLD_KINDS)}."
        )
    if split not in WORLD_SPLITS:
        raise UserError(f"{source} has no split {split!r}; it has 'train' and 'test'.")
    return questions_of(source, world.rows(kind, split, size=size))


def scores(scorer: str, prediction: str, references: Sequence[str]) -> Score:
    """By a scorer's name, as a test has it: "drcd", or "drcd:first" against the first reference alone."""
    return SCORERS[scorer.removesuffix(FIRST)](prediction, references[:1] if scorer.endswith(FIRST) else references)


def guessing(test: Test, questions: Iterable[Question]) -> Score | None:
    """What a guess of the right type, drawn uniformly, scores in the mean, 0 to 100; None where types are not known.

    Known are those of the world's questions: every value in the passage that the asked relation can have.
    """
    if test.source.partition(":")[0] != WORLD:
        return None
    scorer: Scorer = lambda prediction, references: scores(test.scorers[0], prediction, references)  # noqa: E731
    guesses = []
    for question in questions:
        candidates = type_guess(question.context, question.question, test.language)
        if not candidates:  # a kind of question that type_guess does not know
            return None
        guesses.append(guess_score(scorer, candidates, question.references))
    return Score(*(100 * np.mean(guesses, axis=0)).tolist())


def all_guesses(table: Table, tests: Mapping[str, Read]) -> dict[str, Score]:
    guesses = {test.name: guessing(test, tests[test.name].questions) for test in table.tests}
    return {name: score for name, score in guesses.items() if score is not None}
