import random

import pandas
import pytest

from rlhf_kit.data.labelers import METHODS, agreement, merge
from rlhf_kit.errors import UserError


def row(order, labeler=None, prompt="p", **extras):
    """A ranking written as "a > b = c"."""
    levels = [level.split(" = ") for level in order.split(" > ")]
    completions = [text for level in levels for text in level]
    ranks = [rank for rank, level in enumerate(levels, start=1) for _ in level]
    return {"prompt": prompt, "completions": completions, "ranks": ranks, "labeler": labeler, **extras}


def written(merged):
    best = sorted(set(merged["ranks"]))
    pairs = list(zip(merged["completions"], merged["ranks"], strict=True))
    return " > ".join(" = ".join(sorted(text for text, rank in pairs if rank == level)) for level in best)


# The capital of Tennessee: every voter prefers what is near. Nashville beats all in pairs; the largest bloc hates it.
TENNESSEE = (
    [row("Memphis > Nashville > Chattanooga > Knoxville")] * 42
    + [row("Nashville > Chattanooga > Knoxville > Memphis")] * 26
    + [row("Chattanooga > Knoxville > Nashville > Memphis")] * 15
    + [row("Knoxville > Chattanooga > Nashville > Memphis")] * 17
)


def test_ranked_pairs_on_a_known_election():
    (merged,) = merge(TENNESSEE, "ranked-pairs")
    assert written(merged) == "Nashville > Chattanooga > Knoxville > Memphis"


def test_mean_rank_on_the_same_election():
    # Nashville (42*2 + 26 + 32*3) / 100 = 2.06, Chattanooga (42*3 + 26*2 + 15 + 34) / 100 = 2.27,
    # Memphis (42 + 58*4) / 100 = 2.74, Knoxville (42*4 + 26*3 + 30 + 17) / 100 = 2.93.
    (merged,) = merge(TENNESSEE, "mean-rank")
    assert written(merged) == "Nashville > Chattanooga > Memphis > Knoxville"


def test_ranked_pairs_opens_a_circle_at_its_weakest_majority():
    # a beats b 7:2 (+5), b beats c 6:3 (+3), c beats a 5:4 (+1): the last would close the circle.
    rows = [row("a > b > c")] * 4 + [row("b > c > a")] * 2 + [row("c > a > b")] * 3
    assert written(merge(rows, "ranked-pairs")[0]) == "a > b > c"


def test_a_circle_of_equal_majorities_is_opened_by_the_mean_ranks():
    # Mean ranks: b and c 2, a 7/3. Of the majorities of one vote c > a and b > c have the best winners, a > b is last.
    rows = [row("a > b > c > d"), row("b > c > d > a"), row("c > a > b > d")]
    assert written(merge(rows, "ranked-pairs")[0]) == "b > c > a > d"


def test_a_circle_of_equals_is_opened_by_the_texts():
    rows = [row("a > b > c"), row("b > c > a"), row("c > a > b")]
    assert written(merge(rows, "ranked-pairs")[0]) == "a > b > c"
    assert written(merge(rows, "mean-rank")[0]) == "a = b = c"


@pytest.mark.parametrize("method", METHODS)
def test_opposite_rankings_tie_and_ties_in_ballots_give_way(method):
    assert written(merge([row("a > b"), row("b > a")], method)[0]) == "a = b"
    assert written(merge([row("a = b > c"), row("b > a > c")], method)[0]) == "b > a > c"


@pytest.mark.parametrize("method", METHODS)
def test_one_ranking_stays_as_it_is(method):
    assert merge([row("b > a = c", "Ann", weight=2.0)], method) == [
        {"prompt": "p", "completions": ["b", "a", "c"], "ranks": [1, 2, 2], "weight": 2.0}
    ]


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_rows_and_of_answers_never_counts(method):
    rng = random.Random(0)
    for _ in range(50):
        rows = []
        for _ in range(rng.randint(2, 5)):
            ranks = [rng.randint(1, 3) for _ in "abcd"]
            rows.append({"prompt": "p", "completions": list("abcd"), "ranks": ranks})
        expected = written(merge(rows, method)[0])
        shuffled = []
        for ballot in rng.sample(rows, len(rows)):
            order = rng.sample(range(4), 4)
            shuffled.append(
                {
                    "prompt": [{"role": "user", "content": "p"}],
                    "completions": ["abcd"[at] for at in order],
                    "ranks": [ballot["ranks"][at] for at in order],
                }
            )
        assert written(merge(shuffled, method)[0]) == expected


def test_mean_ranks_are_those_of_pandas():
    rng = random.Random(1)
    for _ in range(50):
        ballots = [[rng.randint(1, 4) for _ in range(5)] for _ in range(4)]
        rows = [{"prompt": "p", "completions": list("abcde"), "ranks": ranks} for ranks in ballots]
        means = sum(pandas.Series(ranks).rank() for ranks in ballots)  # x 4, multiples of a half: exact
        assert merge(rows, "mean-rank")[0]["ranks"] == means.rank(method="dense").tolist()


def test_what_is_not_the_same_list_stays_apart():
    rows = [row("a > b", "Ann"), row("a > b > c", "Bob"), row("b > a", "Bob", prompt="q"), row("b > a", "Cid")]
    merged = merge(rows, "mean-rank")
    assert [(one["prompt"], written(one)) for one in merged] == [("p", "a = b"), ("p", "a > b > c"), ("q", "b > a")]
    assert not any("labeler" in one for one in merged)


def test_margins_and_weights_are_averaged():
    rows = [row("a > b", margin=1.0, weight=3.0), row("a > b", margin=None), row("a > b", margin=2.0)]
    (merged,) = merge(rows, "mean-rank")
    assert (merged["margin"], merged["weight"]) == (1.5, 3.0)


def test_an_unknown_way_of_merging():
    with pytest.raises(
        UserError, match="called 'mean_rank'; give mean-rank or ranked-pairs. Did you mean 'mean-rank'"
    ):
        merge([], "mean_rank")


def test_agreement_by_hand():
    rows = [
        row("a > b > c", "Ann"),
        row("a > c > b", "Bob"),  # with Ann: ab, ac alike, bc not
        row("c = b > a", "Cid"),  # with Ann: ab, ac not, bc tied; with Bob: ab, ac not, bc tied
        row("x > y", "Ann", prompt="q"),  # alone
        row("u > v", "Ann", prompt="r"),
        row("u > v", "Ann", prompt="r"),  # the same person again
    ]
    found = agreement(rows)
    assert (found.prompts, found.labelers, found.pairs, found.agreement) == (1, 3, 7, 2 / 7)
    assert found.ceiling is None  # below one half


def test_the_ceiling_is_the_rate_at_which_equal_labelers_say_what_most_say():
    rng = random.Random(2)
    p = 0.8
    rows = [
        row("a > b" if rng.random() < p else "b > a", name, prompt=str(prompt))
        for prompt in range(8000)
        for name in ("Ann", "Bob")
    ]
    found = agreement(rows)
    assert found.agreement == pytest.approx(p**2 + (1 - p) ** 2, abs=0.02)
    assert found.ceiling == pytest.approx(p, abs=0.02)
    assert agreement([row("a > b", "Ann"), row("a > b", "Bob")]).ceiling == 1.0


def test_labelers_without_a_name_are_told_apart():
    found = agreement([row("a > b"), row("a > b"), row("b > a")])
    assert (found.prompts, found.labelers, found.pairs, found.agreement) == (1, 3, 3, 1 / 3)
    nobody = agreement([row("a > b")])
    assert (nobody.prompts, nobody.pairs, nobody.agreement, nobody.ceiling) == (0, 0, None, None)
