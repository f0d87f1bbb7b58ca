import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_kit.data.formats import validate
from rlhf_kit.data.groups import pairs_of, rankings
from rlhf_kit.errors import UserError


def pair(chosen, rejected, group=1, **extras):
    return {"prompt": "Hi", "chosen": chosen, "rejected": rejected, "group": group, **extras}


def test_a_ranking_becomes_its_strictly_ordered_pairs():
    row = {"prompt": "Hi", "completions": ["a", "b", "c", "d"], "ranks": [2, 1, 2, 5], "labeler": "Ann", "margin": 0.5}
    pairs = pairs_of(row, 7)
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [
        ("b", "a"),
        ("b", "c"),
        ("b", "d"),
        ("a", "d"),
        ("c", "d"),
    ]
    extras = {"margin": 0.5, "weight": 0.2, "labeler": "Ann", "group": 7}
    assert all(p == {"prompt": "Hi", "chosen": p["chosen"], "rejected": p["rejected"], **extras} for p in pairs)


def test_weights_are_shared_out_and_add_up_again():
    row = {"prompt": "Hi", "completions": ["a", "b", "c"], "ranks": [1, 2, 3], "weight": 0.6}
    assert [p["weight"] for p in pairs_of(row, 1)] == [pytest.approx(0.2)] * 3
    assert rankings(pairs_of(row, 1)) == [row]


def test_a_list_without_an_order_has_no_pairs():
    assert pairs_of({"prompt": "Hi", "completions": ["a", "b"], "ranks": [3, 3]}, 1) == []


def test_a_text_given_twice_is_one_answer():
    row = {"prompt": "Hi", "completions": ["a", "b", "a"], "ranks": [1, 2, 1]}
    assert [(p["chosen"], p["rejected"], p["weight"]) for p in pairs_of(row, 1)] == [("a", "b", 1.0)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=7), min_size=1, max_size=4), st.randoms())
def test_rankings_come_back_from_their_shuffled_pairs(lists, random):
    rows = []
    for number, ranks in enumerate(lists):
        if len(set(ranks)) > 1:
            dense = sorted(sorted(set(ranks)).index(rank) + 1 for rank in ranks)
            texts = [f"answer {at}" for at in range(len(dense))]
            rows.append({"prompt": f"p{number}", "completions": texts, "ranks": dense})
    pairs = [p for number, row in enumerate(rows) for p in pairs_of(row, number)]
    random.shuffle(pairs)
    validate(pairs or [pair("a", "b")], "pairs", "x")
    back = {row["prompt"]: row for row in rankings(pairs)}
    assert back.keys() == {row["prompt"] for row in rows}
    for row in rows:
        found = back[row["prompt"]]
        rank_of = dict(zip(row["completions"], row["ranks"], strict=True))
        assert found["ranks"] == row["ranks"] and "weight" not in found
        assert [rank_of[text] for text in found["completions"]] == found["ranks"]


def test_what_follows_from_the_pairs_need_not_be_given():
    assert rankings([pair("b", "c"), pair("a", "b")])[0]["completions"] == ["a", "b", "c"]


def test_one_group_by_two_labelers_is_two_rankings():
    rows = [pair("a", "b", labeler="Ann"), pair("b", "a", labeler="Bob")]
    validate(rows, "pairs", "x")
    assert {row["labeler"]: row["completions"] for row in rankings(rows)} == {"Ann": ["a", "b"], "Bob": ["b", "a"]}


def test_pairs_without_a_group_stay_pairs_with_their_weight():
    rows = [{**pair("a", "b", None), "weight": 1.0}, pair("b", "a", None)]
    assert rankings(rows) == [
        {"prompt": "Hi", "completions": ["a", "b"], "ranks": [1, 2], "weight": 1.0},
        {"prompt": "Hi", "completions": ["b", "a"], "ranks": [1, 2]},
    ]


GROUPS = [
    ([pair("a", "b"), pair("b", "a")], "contradict one another (among 'a', 'b')"),
    ([pair("a", "b"), pair("b", "c"), pair("c", "a")], "contradict one another (among 'a', 'b', 'c')"),
    ([pair("a", "b"), pair("a", "c"), pair("c", "d")], "leave open which of 'b' and 'd' is better; give their pair"),
    ([pair("a", "b"), {**pair("a", "c"), "prompt": "Ho"}], "have different prompts; a group is one list of answers"),
    ([pair("a", "b", margin=1), pair("a", "c")], "have different margins; give one, or leave `group` out"),
]


@pytest.mark.parametrize(("rows", "fault"), GROUPS, ids=range(len(GROUPS)))
def test_pairs_that_are_of_no_one_ranking_are_told_by_their_group(rows, fault):
    first = pair("x", "y", group=None)
    with pytest.raises(UserError) as error:
        validate([first, *rows], "pairs", "x")
    summary, line = str(error.value).splitlines()
    assert summary == f"x: 1 fault in {len(rows) + 1} rows; nothing was loaded. Fix these rows, or give other data."
    assert line.startswith("  row 2: the pairs of group 1 ") and fault in line
