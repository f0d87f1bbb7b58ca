"""`rlhf-kit label`: what is typed is in the store before the next list is asked."""

import io
import os
import subprocess
import sys

import pytest
from feedback.test_asking import Typist
from stores import new_name, new_store

from rlhf_kit.data.labels.reader import read_labels
from rlhf_kit.data.labels.store import Answer, Store, open_store
from rlhf_kit.feedback.assignment import Policy, next_assignment, policy_of, set_policy
from rlhf_kit.feedback.labelling import label
from rlhf_kit.terminal.console import Console


@pytest.fixture
def store(tmp_path) -> Store:
    made = new_store(tmp_path)
    for at in range(3):
        made.add_task("ranking", f"Question {at}?", [Answer(f"{at} {text}") for text in ("good", "bad")])
    made.add_task("thumbs", "Good?", [Answer("yes")])
    set_policy(made, Policy(overlap=0, gold=0, repeats=0))
    return made


def labelled(store: Store, *lines: str, kind: str = "ranking", name: str = "amy") -> str:
    console = Console(file=io.StringIO(), width=100)
    label(store, store.add_labeler(name), kind, console, Typist(*lines))
    return console.file.getvalue()


def test_decisions_are_kept_and_the_end_is_told(store):
    said = labelled(store, "b a", "", "", "n", "s long", kind="ranking")
    assert "Nothing is left for you: 3 done" in said
    first, second, third = store.decisions("ranking")
    assert first.content["ranks"] == {str(answer): 2 - at for at, answer in enumerate(first.presented)}
    assert (second.kind, third.kind, third.content) == ("unrankable", "skipped", {"reason": "long"})
    assert {each.interface for each in (first, second, third)} == {"terminal"} and first.submitted >= first.opened


def test_quitting_keeps_what_was_submitted(store):
    labelled(store, "", "", "b a")  # and the input ends
    assert [each.kind for each in store.decisions()] == ["ranked"]
    assert labelled(store, "q").count("Question 0?") == 0  # the second is open still


def test_the_last_decision_is_revised(store):
    labelled(store, "", "", "u", "b a", "", "")
    (decision,) = store.decisions()
    assert decision.content["ranks"] == {str(answer): 2 - at for at, answer in enumerate(decision.presented)}


def test_ones_own_agreement_is_told_in_the_end(store):
    """One list ranked alike, one the other way round: one of two pairs."""
    set_policy(store, Policy(minimum=2, overlap_minimum=3, overlap=0, gold=0, repeats=0))
    labelled(store, *["", ""] * 3)
    first = {each.task: each.content["ranks"] for each in store.decisions()}
    bob = store.add_labeler("bob")
    for at in range(3):
        given = next_assignment(store, bob, "ranking", policy_of(store))
        ranks, same = first[given.task], at == 0
        best_first = ranks[str(given.presented[0])] == 1
        lines = ["a b" if best_first == same else "b a", "", ""] if at < 2 else ["n"]
        said = labelled(store, *lines, name="bob")
    assert "You agree with others on 50.0% of 2 pairs" in said


def test_guidelines_are_read_once(store):
    store.add_guidelines("# Be true\n\nSay what is so.")
    assert "Say what is so" in labelled(store, "", "q")
    assert "Say what is so" not in labelled(store, "q")
    store.add_guidelines("New ones.")
    assert "New ones" in labelled(store) and not store.decisions()
    labelled(store, "", "", "")
    assert store.decisions()[0].guideline == 2


def test_an_example_is_explained_after_it_was_ranked(store):
    store.add_task("ranking", "Try?", [Answer("p"), Answer("q")], "example", [2, 1], "for it is short")
    said = labelled(store, "", "", "q")
    assert said.index("for it is short") > said.index("Your ranking") and "1. q" in said and "2. p" in said


def test_thumbs(store):
    assert "Nothing is left" in labelled(store, "y", kind="thumbs")
    assert read_labels(store.name, ("thumbs",)) == [{"prompt": "Good?", "completion": "yes", "label": True}]


def test_the_command_from_a_pipe(tmp_path):
    name = new_name(tmp_path)
    store = open_store(name, create=True)
    for at in range(2):
        store.add_task("ranking", f"Question {at}?", [Answer(f"{at} a"), Answer(f"{at} b")])
    command = [sys.executable, "-m", "rlhf_kit", "label", name, "--labeler", "amy"]
    done = subprocess.run(
        command, input="b a\n\n\ns\n", text=True, capture_output=True, timeout=120, env=os.environ | {"COLUMNS": "100"}
    )
    assert done.returncode == 0, done.stderr
    assert [each.kind for each in store.decisions()] == ["ranked", "skipped"] and "Question 1?" in done.stdout
    again = subprocess.run(command, input="", text=True, capture_output=True, timeout=120)
    assert again.returncode == 0 and "Nothing is left for you: 2 done" in again.stdout
