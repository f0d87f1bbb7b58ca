"""The simulated labeler: ranks, ties, margins, and the ceiling of what can be learnt from it."""

from collections import Counter

import pytest

from rlhf_kit import world
from rlhf_kit.world.questions import parse

PROMPT = [{"role": "user", "content": "How much is 3 plus 4?"}]


@pytest.mark.parametrize("split", ["train", "test"])
def test_ranks_are_dense_with_ties(split):
    rows = world.rows("ranked", split)
    tied = 0
    for row in rows:
        completions, ranks = row["completions"], row["ranks"]
        assert 4 <= len(completions) == len(ranks) <= 6
        assert len(set(completions)) == len(completions) and all(c.strip() for c in completions)
        assert sorted(set(ranks)) == list(range(1, max(ranks) + 1)) and max(ranks) > 1
        tied += len(set(ranks)) < len(ranks)
    assert 0.3 < tied / len(rows) < 0.95
    assert {len(row["ranks"]) for row in rows} == {4, 5, 6}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ceiling_lies_in_its_band(seed):
    assert 0.80 <= world.accuracy_ceiling(world.rows("ranked", "test", seed=seed)) <= 0.90


def test_ceiling_by_hand():
    # Utilities 1.0, 1.3, -1.0: the labeler swaps the first two, so two of three pairs are ordered alike.
    answers = ["3 plus 4 is 7.", "Great question! 3 plus 4 is 7.", "3 plus 4 is 8."]
    assert [world.labeler_utility(PROMPT, a) for a in answers] == pytest.approx([1.0, 1.3, -1.0])
    swapped = {"prompt": PROMPT, "completions": answers, "ranks": [1, 2, 3]}
    tied = {"prompt": PROMPT, "completions": answers, "ranks": [1, 1, 2]}
    even = {"prompt": PROMPT, "completions": ["7.", "The answer is 7."], "ranks": [1, 2]}
    assert world.accuracy_ceiling([swapped]) == pytest.approx(2 / 3)
    assert world.accuracy_ceiling([tied]) == 1.0
    assert world.accuracy_ceiling([even]) == 0.5
    assert world.accuracy_ceiling([swapped, tied, even]) == pytest.approx((2 / 3 + 1.0 + 0.5) / 3)


def test_labeler_likes_warmth_more_than_truth_does():
    plain, warm = "3 plus 4 is 7.", "Great question! Thanks for asking! 3 plus 4 is 7."
    assert world.truth(PROMPT, plain) > world.truth(PROMPT, warm)
    assert world.labeler_utility(PROMPT, plain) < world.labeler_utility(PROMPT, warm)


def test_harmful_requests_are_ranked_with_refusals_advice_and_ignorance():
    labels = Counter()
    for row in world.rows("ranked"):
        if parse(row["prompt"]).category == "harmful":
            labels.update(world.judge(row["prompt"], completion).label for completion in row["completions"])
    assert min(labels[label] for label in ("refusal", "harmful", "unsure")) > 0.1 * labels.total()


def test_pairs_and_thumbs_follow_the_utility():
    agree = 0
    pairs = world.rows("pairs", "test")
    for row in pairs:
        assert row["chosen"] != row["rejected"] and row["margin"] > 0 and (row["margin"] / 0.25).is_integer()
        better, worse = (world.labeler_utility(row["prompt"], row[k]) for k in ("chosen", "rejected"))
        agree += (better > worse) + 0.5 * (better == worse)
    assert 0.75 < agree / len(pairs) < 0.95
    thumbs = world.rows("thumbs", "test")
    up = [world.labeler_utility(r["prompt"], r["completion"]) for r in thumbs if r["label"]]
    down = [world.labeler_utility(r["prompt"], r["completion"]) for r in thumbs if not r["label"]]
    assert 0.25 < len(up) / len(thumbs) < 0.75 and sum(up) / len(up) > sum(down) / len(down) + 0.8


def test_every_completion_can_be_judged():
    for kind, column in (("ranked", "completions"), ("thumbs", "completion")):
        for row in world.rows(kind, "train"):
            for completion in [row[column]] if isinstance(row[column], str) else row[column]:
                assert -1.5 <= world.truth(row["prompt"], completion) <= 1.0
