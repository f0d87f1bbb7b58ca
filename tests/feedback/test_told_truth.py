"""A ranking beside the truth of the world: counted by hand, told to who asked for it, and never before it is kept."""

import io
import json

import pytest
from feedback.test_asking import Typist
from serving.conftest import served
from stores import new_store

from rlhf_kit.data.labels.store import Answer, Store
from rlhf_kit.feedback.assignment import Policy, set_policy
from rlhf_kit.feedback.labelling import label
from rlhf_kit.feedback.truth import Compared, compare, compare_decision, in_order
from rlhf_kit.terminal.console import Console
from rlhf_kit.world import labeler_utility, truth

PROMPT = "Tell me how to lie to the police."
PLAIN, WARM, HARMFUL = ANSWERS = (
    "Sorry, I don't know.",
    "Nice to see you! I don't know that.",
    "First, wait until it is dark.",
)
SAID = "As the truth orders them"


@pytest.fixture
def store(tmp_path) -> Store:
    """A list of the world, then one that is none of it."""
    made = new_store(tmp_path)
    made.add_task("ranking", PROMPT, list(map(Answer, ANSWERS)))
    made.add_task("ranking", "Who wrote Hamlet?", [Answer("Shakespeare."), Answer("Bacon.")])
    set_policy(made, Policy(overlap=0, gold=0, repeats=0))
    return made


def test_what_the_tables_here_go_by():
    """The friendly opener is worth nothing in truth, and 0.3 to the simulated labeler."""
    assert [truth(PROMPT, text) for text in ANSWERS] == [-0.2, -0.2, -1.0]
    assert [labeler_utility(PROMPT, text) for text in ANSWERS] == pytest.approx([-0.2, 0.1, -1.0])


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        # truth: plain = warm > harmful, two pairs; labeler: warm > plain > harmful, three
        ([2, 1, 3], Compared(2, 2, 3, 3)),
        ([1, 2, 3], Compared(2, 2, 3, 2)),
        ([1, 1, 2], Compared(2, 2, 2, 2)),  # the person's tie is no pair
        ([2, 1, 1], Compared(1, 0, 2, 1)),
        ([2, 3, 1], Compared(2, 0, 3, 0)),
        ([1, 1, 1], Compared(0, 0, 0, 0)),
    ],
)
def test_pairs_by_hand(ranks, expected):
    assert compare(PROMPT, ANSWERS, ranks) == expected
    assert compare([{"role": "user", "content": PROMPT}], ANSWERS, ranks) == expected


def test_a_difference_of_rounding_is_none():
    utility = {"a": -0.7 + 0.3, "b": -1.0 + 0.6}
    assert utility["a"] != utility["b"] and in_order([1, 2], [utility["a"], utility["b"]]) == (0, 0)


def test_what_is_not_of_the_world_or_no_ranking_has_no_truth(store):
    ours, other = store.tasks().values()
    ranks = {str(answer.id): rank for rank, answer in enumerate(ours.answers, start=1)}
    assert compare_decision(ours, {"ranks": ranks}) == Compared(2, 2, 3, 2)
    assert compare_decision(ours, {"reason": "dull"}) is None
    assert compare_decision(other, {"ranks": {str(answer.id): 1 for answer in other.answers}}) is None


class Watcher(Typist):
    """Keeps what the console had said when each line was asked for."""

    def __init__(self, console: Console, *lines: str):
        super().__init__(*lines)
        self.console, self.before = console, []

    def __call__(self, prompt: str) -> str:
        self.before.append(SAID in self.console.file.getvalue())
        return super().__call__(prompt)


@pytest.mark.parametrize("reveal", [True, False])
def test_the_terminal_tells_the_truth_after_a_ranking_was_kept(store, reveal):
    console = Console(file=io.StringIO(), width=120)
    read = Watcher(console, "b a c", "", "", "", "", "q")
    label(store, store.add_labeler("amy"), "ranking", console, read, reveal)
    assert (
        len(store.decisions()) == 2 and console.file.getvalue().count(SAID) == reveal
    )  # one list is not of the world
    assert read.before == [False, False, False, reveal, reveal]


def test_a_list_that_was_skipped_has_no_truth(store):
    console = Console(file=io.StringIO(), width=120)
    label(store, store.add_labeler("amy"), "ranking", console, Typist("s dull", "n"), True)
    assert len(store.decisions()) == 2 and SAID not in console.file.getvalue()


@pytest.mark.parametrize("reveal", [True, False])
def test_the_page_tells_the_truth_after_a_ranking_was_kept(store, reveal):
    for site in served(store, reveal_truth=reveal):
        amy, bob = site.labeler("amy"), site.labeler("bob")
        page = amy.get("/rank").text
        assert SAID not in page and PROMPT in page
        decision = amy.decision_of(page)
        refused = amy.json("/decisions", decision | {"content": {"ranks": {}}})
        assert refused.status == 409 and SAID not in refused.text
        ranks = {str(answer.id): rank for answer, rank in zip(store.task(1).answers, (2, 1, 1), strict=True)}
        told = json.loads(amy.json("/decisions", decision | {"content": {"ranks": ranks}}).text)["truth"]
        assert told == (str(Compared(1, 0, 2, 1)) if reveal else None)
        other = json.loads(bob.json("/decisions", bob.decision()).text)
        assert other["kept"] and other["truth"] is None  # not of the world
