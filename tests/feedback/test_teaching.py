"""`rlhf-kit demo --human`: lists of the world ranked by the user, what is kept, and what they moved, by hand."""

import io

import pytest
from feedback.test_asking import Typist

from rlhf_kit.feedback.teaching import Moved, lists_to_rank, moved, order, rank
from rlhf_kit.terminal.console import Console
from rlhf_kit.world import rows

LISTS = [{"prompt": [{"role": "user", "content": f"{at}?"}], "completions": ["x", "y", "z"]} for at in range(3)]
FIRST, SECOND, THIRD = LISTS


def ranked(*lines: str, lists=LISTS) -> list[dict]:
    return rank(Console(file=io.StringIO(), width=100), Typist(*lines), lists)


def row(of: dict, *ranks: int) -> dict:
    return of | {"ranks": list(ranks), "labeler": "you"}


# --- which lists ----------------------------------------------------------------------------------------------------


def test_lists_are_drawn_by_the_seed_of_the_training_rankings():
    lists = lists_to_rank(20, 0)
    assert lists == lists_to_rank(20, 0) != lists_to_rank(20, 1)
    known = {(str(one["prompt"]), frozenset(one["completions"])) for one in rows("ranked", "train")}
    assert {(str(one["prompt"]), frozenset(one["completions"])) for one in lists} <= known
    assert all(set(one) == {"prompt", "completions"} for one in lists)
    assert all(len(set(one["completions"])) == len(one["completions"]) for one in lists)


def test_the_order_of_the_answers_tells_nothing():
    best = {
        (str(one["prompt"]), frozenset(one["completions"])): one["completions"][one["ranks"].index(1)]
        for one in rows("ranked", "train")
    }
    lists = lists_to_rank(400, 0)
    firsts = [best[str(one["prompt"]), frozenset(one["completions"])] == one["completions"][0] for one in lists]
    chance = sum(1 / len(one["completions"]) for one in lists) / len(lists)
    assert abs(sum(firsts) / len(firsts) - chance) < 4 * 0.5 / 400**0.5


# --- ranked by the user ---------------------------------------------------------------------------------------------


def test_rankings_are_rows_to_train_on():
    lines = ["c a b", "", "", "a b=c", "", "", "", ""]
    assert ranked(*lines) == [row(FIRST, 2, 3, 1), row(SECOND, 1, 2, 2), row(THIRD, 1, 2, 3)]


def test_what_is_skipped_or_not_rankable_is_left_out():
    assert ranked("s dull", "n", "b a c", "", "") == [row(THIRD, 2, 1, 3)]


def test_quitting_keeps_what_was_ranked():
    assert ranked("b a c", "", "", "q") == ranked("b a c", "", "") == [row(FIRST, 2, 1, 3)]
    assert ranked() == []


def test_undo_at_the_beginning_of_a_list_asks_the_one_before_again():
    assert ranked("", "", "u", "c b a", "", "", "q") == [row(FIRST, 3, 2, 1)]
    assert ranked("s", "u", "c b a", "", "", "q") == [row(FIRST, 3, 2, 1)]  # what was left out too
    assert ranked("u", "c b a", "", "", "q") == [row(FIRST, 3, 2, 1)]  # before the first there is none


# --- what they moved ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"), [([1, 2, 3], "a b c"), ([0.5, -2, 0.5], "b a=c"), ([1, 1], "a=b"), ([3, 2, 1], "c b a")]
)
def test_an_order_is_letters_from_the_smallest_value(values, expected):
    assert order(values) == expected


def test_what_moved_by_hand():
    """x > y = z by the user: two pairs. Before z > y > x, both wrong; after x > z > y, both right."""
    before, after = ({"x": 0, "y": 1, "z": 2}, {"x": 3, "y": 1, "z": 2})
    scores = [lambda prompt, texts, own=own: [own[text] for text in texts] for own in (before, after)]
    assert moved([row(FIRST, 1, 2, 2)], *scores) == [Moved("0?", "a b=c", "c b a", "a c b", 2, 0, 2, None)]


def test_a_list_of_the_world_is_compared_with_its_truth():
    def flat(prompt, texts):
        return [0.0] * len(texts)

    (one,) = lists_to_rank(1, 0)
    ranks = list(range(1, len(one["completions"]) + 1))
    (told,) = moved([row(one, *ranks)], flat, flat)
    assert (told.right_before, told.right_after) == (0, 0) and told.before == "=".join("abcdefghi"[: len(ranks)])
    assert told.compared is not None and told.pairs == len(ranks) * (len(ranks) - 1) // 2
