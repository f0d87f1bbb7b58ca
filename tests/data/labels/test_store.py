"""The store of labels: what is kept, what is refused, and that nothing is kept twice or lost."""

import sqlite3
import threading

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError
from stores import new_name, new_store

from rlhf_kit.data.labels import is_store, parts, schema
from rlhf_kit.data.labels.store import Answer, Event, Store, StoreFault, merge_equal, open_store
from rlhf_kit.errors import UserError

RANKED = {"1": 1, "2": 2, "3": 2}


@pytest.fixture
def store(tmp_path) -> Store:
    return new_store(tmp_path)


def given(store: Store, task: int, labeler: int, presented=(1, 2, 3), turn: int = 0) -> int:
    """An assignment, as `feedback.assignment` makes them."""
    values = {
        "task": task,
        "labeler": labeler,
        "turn": turn,
        "presented": list(presented),
        "opened": 0.0,
        "expires": 1e12,
    }
    with store.writing() as connection:
        return connection.execute(insert(schema.assignments).values(values)).inserted_primary_key[0]


@pytest.fixture
def ranking(store) -> tuple[int, int]:
    """(labeler, assignment) of a list of three."""
    task = store.add_task("ranking", "Why?", [Answer("a"), Answer("b"), Answer("c")])
    labeler = store.add_labeler("amy")
    return labeler, given(store, task, labeler)


def event(labeler: int, assignment: int, uid: str = "one", ranks=RANKED, **content) -> Event:
    return Event(uid, "ranked", labeler, {"ranks": ranks, **content}, assignment)


# --- opening --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("labels.db", True), ("runs/x.sqlite3", True), ("labels.db:thumbs", True), ("LABELS.DB", True),
        ("postgresql://host/name", True), ("labels.db:other", False), ("labels.jsonl", False), ("owner/name", False),
        ("owner/name:config", False),
    ],
)  # fmt: skip
def test_a_store_is_known_by_its_name(source, expected):
    assert is_store(source) is expected


def test_what_is_read_of_a_store_is_named_after_a_colon():
    assert parts("a:b.db:ranked") == ("a:b.db", "ranked") and parts("a:b.db") == ("a:b.db", "")


def test_a_store_that_is_not_there_is_made_only_where_that_is_wanted(tmp_path):
    with pytest.raises(UserError, match="There is no .*labels.db. `rlhf-kit collect` makes"):
        open_store(tmp_path / "labels.db")
    assert not list(tmp_path.iterdir())
    open_store(tmp_path / "labels.db", create=True)
    open_store(tmp_path / "labels.db")
    with pytest.raises(UserError, match="no folder"):
        open_store(tmp_path / "none" / "labels.db", create=True)


@pytest.mark.parametrize("create", [True, False])
def test_a_file_of_something_else_is_refused_and_stays(tmp_path, create):
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
    letter = tmp_path / "letter.db"
    letter.write_text("Dear all, this is a letter.")
    before = {path: path.read_bytes() for path in (other, letter)}
    with pytest.raises(UserError, match=r"something else \(its tables: customers\)"):
        open_store(other, create)
    with pytest.raises(UserError, match="is not an SQLite file"):
        open_store(letter, create)
    assert {path: path.read_bytes() for path in before} == before


def test_a_store_of_another_version_is_refused_by_its_number(store):
    with store.writing() as connection:
        connection.execute(text("UPDATE store SET value = '2' WHERE name = 'schema'"))
    with pytest.raises(UserError, match="store of version 2, and this rlhf_kit reads version 1"):
        open_store(store.name)


def test_a_password_is_not_taken_in_a_url():
    with pytest.raises(UserError, match="PGPASSWORD") as error:
        open_store("postgresql://amy:secret@localhost/labels")
    assert "secret" not in str(error.value)


def test_two_who_make_a_store_at_once_make_one(tmp_path):
    faults, name = [], new_name(tmp_path)

    def make():
        try:
            open_store(name, create=True).add_labeler("amy")
        except Exception as error:  # noqa: BLE001, any is a failure here
            faults.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and list(open_store(name).labelers().values()) == [("amy", "labeler")]


# --- tasks ----------------------------------------------------------------------------------------------------------


def test_equal_answers_are_one_with_the_sources_of_all():
    merged = merge_equal([Answer("a", [{"model": "x"}]), Answer("b"), Answer("a", [{"model": "y"}])])
    assert merged == [Answer("a", [{"model": "x"}, {"model": "y"}]), Answer("b", [])]


def test_the_same_list_is_one_task_whatever_its_order(store):
    first = store.add_task("ranking", "Why?", [Answer("a"), Answer("b")])
    assert store.add_task("ranking", " Why? ", [Answer("b"), Answer("a")]) == first
    assert store.add_task("ranking", "Why?", [Answer("b"), Answer("c")]) != first
    assert store.add_task("thumbs", "Why?", [Answer("a")]) != first
    assert [task.prompt for task in store.tasks("ranking").values()] == ["Why?", "Why?"]


@pytest.mark.parametrize("answers", [[], ["a"], ["a", "a"]])
def test_a_ranking_needs_two_different_answers(store, answers):
    with pytest.raises(UserError, match="needs two different answers or more"):
        store.add_task("ranking", "Why?", list(map(Answer, answers)))
    with pytest.raises(UserError, match="needs one answer, and has 2"):
        store.add_task("thumbs", "Why?", [Answer("a"), Answer("b")])


def test_gold_is_for_each_answer_of_a_gold_task(store):
    with pytest.raises(UserError, match="gold task has 1 gold values for 2"):
        store.add_task("ranking", "Why?", [Answer("a"), Answer("b")], "gold", [1])
    with pytest.raises(UserError, match="normal task has 2"):
        store.add_task("ranking", "Why?", [Answer("a"), Answer("b")], gold=[1, 2])


def test_a_changed_guideline_is_a_new_version(store):
    assert [store.add_guidelines(words) for words in ("one", "one", "two", "one")] == [1, 1, 2, 3]
    assert store.guidelines() == (3, "one")


@pytest.mark.parametrize("name", ["", " amy", "a\x00b", "x" * 81, "a\nb"])
def test_a_name_is_one_line_without_blanks_around_it(store, name):
    with pytest.raises(UserError, match="1 to 80 characters"):
        store.add_labeler(name)


def test_a_labeler_does_not_become_an_admin(store):
    amy = store.add_labeler("amy")
    assert store.add_labeler("amy") == amy
    with pytest.raises(UserError, match="is there already, as labeler"):
        store.add_labeler("amy", "admin")


# --- events ---------------------------------------------------------------------------------------------------------


def test_the_same_event_is_kept_once(store, ranking):
    assert [store.add_event(event(*ranking)) for _ in range(3)] == [True, False, False]
    assert len(store.decisions()) == 1


def test_a_revision_is_added_and_counts(store, ranking):
    store.add_event(event(*ranking))
    store.add_event(event(*ranking, uid="two", ranks={"1": 2, "2": 1, "3": 1}))
    (decision,) = store.decisions()
    assert decision.content["ranks"] == {"1": 2, "2": 1, "3": 1}
    with store.reading() as connection:
        assert len(connection.execute(select(schema.events)).all()) == 2


@pytest.mark.parametrize("statement", ["UPDATE events SET kind = 'skipped'", "DELETE FROM events"])
def test_the_database_refuses_to_change_an_event(store, ranking, statement):
    store.add_event(event(*ranking))
    with pytest.raises((IntegrityError, StoreFault), match="only added"), store.writing() as connection:
        connection.execute(text(statement))
    assert store.decisions()[0].kind == "ranked"


def test_an_event_of_another_labelers_assignment_is_refused(store, ranking):
    bob = store.add_labeler("bob")
    with pytest.raises(UserError, match="not given to this labeler"):
        store.add_event(event(bob, ranking[1]))
    store.add_event(event(*ranking))
    with pytest.raises(UserError, match="another labeler's"):
        store.add_event(event(bob, ranking[1]))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"ranks": {"1": 1, "2": 2}}, "one for each answer"),
        ({"ranks": {"1": 1, "2": 2, "4": 3}}, "one for each answer"),
        ({"ranks": {"1": 1, "2": 3, "3": 2.0}}, "whole numbers"),
        ({"ranks": {"1": 1, "2": 3, "3": 3}}, "without a gap"),
        ({"ranks": {"1": 2, "2": 3, "3": 4}}, "without a gap"),
        ({"ranks": {"1": True, "2": 2, "3": 3}}, "whole numbers"),
        ({"ranks": RANKED, "label": True}, "`label` is not part"),
        ({"ranks": RANKED, "ratings": {"1": 8}}, "`ratings` of answer 1 must be 1 to 7"),
        ({"ranks": RANKED, "ratings": {"9": 1}}, "`ratings` must be by answer"),
        ({"ranks": RANKED, "flags": {"1": ["rude"]}}, "`flags` of answer 1"),
        ({"ranks": RANKED, "flags": {"1": ["opinion", "opinion"]}}, "`flags` of answer 1"),
        ({"ranks": RANKED, "flags": {"1": [["opinion"]]}}, "`flags` of answer 1"),
        ({"ranks": RANKED, "comment": "x" * 10_001}, "at most 10,000"),
        ({"ranks": RANKED, "comment": 1}, "`comment` must be text"),
    ],
)
def test_a_decision_that_does_not_fit_is_refused(store, ranking, content, fault):
    with pytest.raises(UserError, match=fault):
        store.add_event(Event("one", "ranked", ranking[0], content, ranking[1]))
    assert not store.decisions()


def test_a_thumb_is_for_a_task_of_thumbs(store, ranking):
    with pytest.raises(UserError, match="'ranking' does not take it"):
        store.add_event(Event("one", "thumb", ranking[0], {"label": True}, ranking[1]))
    task = store.add_task("thumbs", "Why?", [Answer("a")])
    assignment = given(store, task, ranking[0], [4])
    with pytest.raises(UserError, match="must be true or false"):
        store.add_event(Event("one", "thumb", ranking[0], {"label": 1}, assignment))
    assert store.add_event(Event("one", "thumb", ranking[0], {"label": True}, assignment))


def test_every_fault_of_an_event_is_told(store, ranking):
    with pytest.raises(UserError, match="one for each answer; .* must be by answer; .* must be text"):
        store.add_event(Event("one", "ranked", ranking[0], {"ratings": [], "comment": None}, ranking[1]))


def test_guidelines_are_acknowledged_once(store):
    amy, version = store.add_labeler("amy"), store.add_guidelines("Be kind.")
    assert not store.acknowledged(amy, version)
    store.acknowledge(amy, version)
    store.acknowledge(amy, version)
    assert store.acknowledged(amy, version) and not store.acknowledged(amy, version + 1)
    with store.reading() as connection:
        assert len(connection.execute(select(schema.events)).all()) == 1


def test_an_answer_is_shown_to_those_who_were_given_it(store, ranking):
    bob = store.add_labeler("bob")
    assert store.answer_given(1, ranking[0]) == "a" and store.answer_given(1, bob) is None


def test_many_writers_lose_nothing(store, ranking):
    def write(name: str):
        for number in range(20):
            store.add_event(event(*ranking, uid=f"{name}-{number}"))
            store.add_event(event(*ranking, uid=f"{name}-{number}"))

    threads = [threading.Thread(target=write, args=(f"writer-{at}",)) for at in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.reading() as connection:
        assert len(connection.execute(select(schema.events)).all()) == 120
