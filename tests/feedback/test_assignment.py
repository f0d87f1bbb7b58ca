"""Who is given which task: overlap, gold, repeats, locks, and nobody a task twice."""

import threading
import uuid
from collections import Counter

import pytest
from stores import new_store

from rlhf_kit.data.labels.store import Answer, Event, Store, open_store
from rlhf_kit.errors import UserError
from rlhf_kit.feedback.assignment import (
    Assignment,
    Policy,
    assignment_of,
    last_assignment,
    next_assignment,
    policy_of,
    set_policy,
    standing,
)

PLAIN = Policy(overlap=0, gold=0, repeats=0)


def store_of(folder, tasks: int, gold: int = 0, examples: int = 0, kind: str = "ranking") -> Store:
    store = new_store(folder)
    count = 1 if kind == "thumbs" else 4
    for mode, number in (("normal", tasks), ("gold", gold), ("example", examples)):
        for at in range(number):
            known = None if mode == "normal" else [1, 2, 3, 4][:count]
            store.add_task(kind, f"{mode} {at}?", [Answer(f"{mode} {at} {k}") for k in range(count)], mode, known)
    return store


def decide(store: Store, labeler: int, given: Assignment, kind: str = "ranked") -> None:
    ranks = {str(answer): rank for rank, answer in enumerate(given.presented, start=1)}
    store.add_event(Event(uuid.uuid4().hex, kind, labeler, {"ranks": ranks} if kind == "ranked" else {}, given.id))


def work(store: Store, labeler: int, policy: Policy, kind: str = "ranked") -> list[Assignment]:
    """All that a labeler is given, to the end."""
    given = []
    while (one := next_assignment(store, labeler, "ranking", policy)) is not None:
        given.append(one)
        decide(store, labeler, one, kind)
    return given


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"overlap": 1.1}, "overlap is 1.1; give 0 to 1"),
        ({"gold": -0.1}, "gold is -0.1"),
        ({"gold": 0.5, "repeats": 0.45}, "too few new tasks"),
        ({"minimum": 0}, "1 <= minimum"),
        ({"minimum": 4, "overlap_minimum": 3}, "minimum <= overlap_minimum"),
        ({"lock": 0}, "lock is 0"),
    ],
)
def test_a_policy_that_cannot_be_kept_is_refused(values, fault):
    with pytest.raises(UserError, match=fault):
        Policy(**values)


def test_the_policy_is_the_stores(tmp_path):
    store = store_of(tmp_path, 1)
    assert policy_of(store) == Policy()
    for policy in (Policy(minimum=2), Policy(overlap=0.5)):
        set_policy(store, policy)
        assert policy_of(open_store(store.name)) == policy


def test_each_task_is_given_to_as_many_as_it_needs_and_nobody_twice(tmp_path):
    store = store_of(tmp_path, 60)
    policy = Policy(minimum=1, overlap=0.5, overlap_minimum=3, gold=0, repeats=0)
    labelers = [store.add_labeler(name) for name in ("amy", "bob", "cat", "dan")]
    given = {labeler: work(store, labeler, policy) for labeler in labelers}
    for assignments in given.values():
        assert len({one.task for one in assignments}) == len(assignments)
    counts = Counter(one.task for assignments in given.values() for one in assignments)
    assert set(counts) == set(store.tasks()) and set(counts.values()) == {1, 3}
    assert 20 <= sum(count == 3 for count in counts.values()) <= 40  # half of 60


def test_what_is_open_is_given_again_with_the_same_order(tmp_path):
    store = store_of(tmp_path, 3)
    amy = store.add_labeler("amy")
    first = next_assignment(store, amy, "ranking", PLAIN)
    assert next_assignment(store, amy, "ranking", PLAIN) == first
    decide(store, amy, first)
    assert next_assignment(store, amy, "ranking", PLAIN).task != first.task


def test_a_lock_keeps_a_task_for_its_labeler_until_it_expires(tmp_path):
    store = store_of(tmp_path, 1)
    amy, bob = store.add_labeler("amy"), store.add_labeler("bob")
    first = next_assignment(store, amy, "ranking", PLAIN, now=1000)
    assert next_assignment(store, bob, "ranking", PLAIN, now=1000 + PLAIN.lock - 1) is None
    second = next_assignment(store, bob, "ranking", PLAIN, now=1000 + PLAIN.lock + 1)
    assert second.task == first.task
    decide(store, amy, first)  # late, and kept
    assert len(store.decisions()) == 1


def test_looking_at_it_again_renews_the_lock(tmp_path):
    store = store_of(tmp_path, 1)
    amy, bob = store.add_labeler("amy"), store.add_labeler("bob")
    next_assignment(store, amy, "ranking", PLAIN, now=1000)
    next_assignment(store, amy, "ranking", PLAIN, now=2500)
    assert next_assignment(store, bob, "ranking", PLAIN, now=2600 + PLAIN.lock - 200) is None


def test_a_skipped_task_goes_to_somebody_else(tmp_path):
    store = store_of(tmp_path, 2)
    amy, bob = store.add_labeler("amy"), store.add_labeler("bob")
    assert len(work(store, amy, PLAIN, "skipped")) == 2
    assert len(work(store, bob, PLAIN)) == 2
    assert work(store, store.add_labeler("cat"), PLAIN) == []


def test_what_is_not_rankable_was_decided(tmp_path):
    store = store_of(tmp_path, 2)
    work(store, store.add_labeler("amy"), PLAIN, "unrankable")
    assert work(store, store.add_labeler("bob"), PLAIN) == []


def test_examples_come_first_and_gold_in_its_share(tmp_path):
    store = store_of(tmp_path, 300, gold=80, examples=2)
    policy = Policy(overlap=0, gold=0.1, repeats=0.1)
    amy = store.add_labeler("amy")
    given, tasks = work(store, amy, policy), store.tasks()
    modes = [tasks[one.task].mode for one in given]
    assert modes[:2] == ["example"] * 2 and "example" not in modes[2:]
    assert 15 <= modes.count("gold") <= 60  # a tenth of 375; 5.8 is the standard deviation
    repeats = [one for one in given if one.turn == 1]
    assert 15 <= len(repeats) <= 55 and {tasks[one.task].mode for one in repeats} == {"normal"}
    places = {(one.task, one.turn): at for at, one in enumerate(given)}
    assert all(at - places[task, 0] > 5 for (task, turn), at in places.items() if turn == 1)
    assert Counter((one.task, one.turn) for one in given).most_common(1)[0][1] == 1


def test_a_hidden_repeat_comes_after_others(tmp_path):
    """Nine of ten draws ask for a repeat: the first six tasks are new all the same."""
    store = store_of(tmp_path, 12)
    given = work(store, store.add_labeler("amy"), Policy(overlap=0, gold=0, repeats=0.9))
    places = {(one.task, one.turn): at for at, one in enumerate(given)}
    apart = [at - places[task, 0] for (task, turn), at in places.items() if turn == 1]
    assert [one.turn for one in given[:6]] == [0] * 6 and len(apart) >= 6 and min(apart) == 6


def test_the_order_shown_is_drawn_and_kept(tmp_path):
    store = store_of(tmp_path, 200)
    amy = store.add_labeler("amy")
    given, tasks = work(store, amy, PLAIN), store.tasks()
    firsts = Counter([answer.id for answer in tasks[one.task].answers].index(one.presented[0]) for one in given)
    assert all(25 <= firsts[place] <= 75 for place in range(4))  # 50 each; 4.1 standard deviations
    assert {one.id: one.presented for one in given} == {each.assignment: each.presented for each in store.decisions()}


def test_many_who_ask_at_once_get_each_task_once(tmp_path):
    store = store_of(tmp_path, 60)
    names = [store.add_labeler(f"labeler {at}") for at in range(6)]
    given: dict[int, list[Assignment]] = {}
    threads = [
        threading.Thread(target=lambda labeler=labeler: given.update({labeler: work(store, labeler, PLAIN)}))
        for labeler in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = Counter(one.task for assignments in given.values() for one in assignments)
    assert len(counts) == 60 and set(counts.values()) == {1}


def test_kinds_are_apart(tmp_path):
    store = store_of(tmp_path, 2)
    store.add_task("thumbs", "Good?", [Answer("a")])
    amy = store.add_labeler("amy")
    assert store.task(next_assignment(store, amy, "thumbs", PLAIN).task).kind == "thumbs"
    assert {store.task(one.task).kind for one in work(store, amy, PLAIN)} == {"ranking"}


def test_standing_counts_what_is_done_and_left(tmp_path):
    store = store_of(tmp_path, 3)
    amy = store.add_labeler("amy")
    assert standing(store, amy, "ranking", PLAIN) == (0, 3)
    decide(store, amy, next_assignment(store, amy, "ranking", PLAIN))
    assert standing(store, amy, "ranking", PLAIN) == (1, 2)
    next_assignment(store, amy, "ranking", PLAIN)
    assert standing(store, amy, "ranking", PLAIN) == (1, 2)  # the one that is open is left to do


def test_an_assignment_is_its_labelers_alone(tmp_path):
    store = store_of(tmp_path, 2)
    amy, bob = store.add_labeler("amy"), store.add_labeler("bob")
    assert last_assignment(store, amy, "ranking") is None
    first = next_assignment(store, amy, "ranking", PLAIN)
    assert assignment_of(store, first.id, amy) == (first, None)
    assert assignment_of(store, first.id, bob) == (None, None)
    decide(store, amy, first)
    decide(store, amy, next_assignment(store, amy, "ranking", PLAIN))
    decide(store, amy, first)  # a revision
    assert last_assignment(store, amy, "ranking") == first
