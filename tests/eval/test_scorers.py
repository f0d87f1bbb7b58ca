"""Scores as the official scripts have them: their own outputs, and cases counted by hand."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_kit.eval import scorers
from rlhf_kit.eval.scorers import Score

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures/golden_scores.json").read_text(encoding="utf-8"))
CASES = [*GOLDEN["en"], *GOLDEN["zh"]]
SCORERS = {
    "coqa": scorers.coqa,
    "squad": scorers.squad,
    "cmrc": scorers.cmrc,
    "mlqa": scorers.mlqa,
    "drcd_ascii": scorers.drcd,
    "drcd_fw": lambda prediction, references: scorers.drcd(prediction, references, full_width=True),
}


@pytest.mark.parametrize("name", SCORERS)
def test_the_official_scripts_outputs(name):
    cases = [case for case in CASES if f"{name}_em" in case]
    assert len(cases) in (12, 13, 25)
    for case in cases:
        expected = case[f"{name}_em"], case[f"{name}_f1"]
        assert SCORERS[name](case["pred"], case["refs"]) == pytest.approx(expected, abs=1e-12), case


@pytest.mark.parametrize(
    "name, em, f1",
    [
        ("drcd_ascii", 78.12, 92.26),
        ("drcd_fw", 79.06, 92.42),
        ("cmrc", 80.33, 91.84),
        ("mlqa", 80.45, 91.99),
        ("squad", 78.12, 78.12),
    ],
)
def test_people_on_drcd(shared, name, em, f1):
    """The second answer against the first, on the whole development set."""
    data = json.loads((shared / "drcd/DRCD_dev.json").read_text(encoding="utf-8"))["data"]
    asked = [question for article in data for paragraph in article["paragraphs"] for question in paragraph["qas"]]
    found = [scorers.human(SCORERS[name], [answer["text"] for answer in question["answers"]]) for question in asked]
    assert len(found) == 3524
    assert 100 * sum(score.em for score in found) / 3524 == pytest.approx(em, abs=0.005)
    assert 100 * sum(score.f1 for score in found) / 3524 == pytest.approx(f1, abs=0.005)


# -- CoQA ------------------------------------------------------------------------------------------------------------


def test_coqa_leaves_one_reference_out_in_turn():
    assert scorers.coqa("cream", ["white", "white", "white", "cream"]) == (0.75, 0.75)
    assert scorers.coqa("white", ["white", "white", "white", "cream"]) == (1.0, 1.0)  # equal ones are not merged
    # Without the first: F1 2/3 with "barn". Without the second: 1.
    assert scorers.coqa("red barn", ["red barn", "barn"]) == (0.5, (1 + 2 / 3) / 2)


def test_coqa_of_nothing():
    assert scorers.coqa("", ["the", "An!"]) == (1.0, 1.0)
    assert scorers.coqa("", ["no", "no"]) == (0.0, 0.0)
    assert scorers.coqa("yes", ["the"]) == (0.0, 0.0)


def test_people_on_coqa():
    """Each answer against the others: em 0, 1, 1; F1 of "in a barn" with "barn" 2/3."""
    assert scorers.coqa_human(["in a barn", "the barn", "barn"]) == pytest.approx((2 / 3, (2 / 3 + 1 + 1) / 3))
    with pytest.raises(ValueError, match="another one to be compared"):
        scorers.coqa_human(["barn"])


def test_coqa_by_domain():
    turns = [("cnn", Score(1, 1))] * 2 + [("race", Score(0, 0.5))] + [("reddit", Score(0, 1 / 3))] + [("mine", (0, 0))]
    found = scorers.coqa_report((source, Score(*score)) for source, score in turns)
    assert found["news"] == {"em": 100.0, "f1": 100.0, "turns": 2}
    assert found["in_domain"] == {"em": 66.7, "f1": 83.3, "turns": 3}  # turns weigh the same, not domains
    assert found["out_domain"] == {"em": 0.0, "f1": 16.7, "turns": 2}
    assert found["overall"] == {"em": 40.0, "f1": 56.7, "turns": 5}
    assert found["science"] == {"em": 0.0, "f1": 0.0, "turns": 0}
    assert list(found)[:7] == [
        "children_stories", "literature", "mid-high_school", "news", "wikipedia", "science", "reddit"
    ]  # fmt: skip


# -- the others ------------------------------------------------------------------------------------------------------


def test_squad_is_the_best_over_references_for_each_figure():
    assert scorers.squad("the old red barn", ["red", "An old, red barn house"]) == (0.0, 6 / 7)
    assert scorers.squad("a", ["the"]) == (1.0, 0.0)  # its script: nothing shared is F1 0, though they are equal


def test_squad2_wants_nothing_where_there_is_no_answer():
    assert scorers.squad2("", []) == scorers.squad2("The!", []) == (1.0, 1.0)
    assert scorers.squad2("barn", []) == scorers.squad2("", ["barn"]) == (0.0, 0.0)
    assert scorers.squad2("", ["the", "."]) == (1.0, 1.0)  # references without a word are none
    assert scorers.squad2("", ["the", "barn"]) == (0.0, 0.0)
    assert scorers.squad2("the old red barn", ["red", "An old, red barn house"]) == (0.0, 6 / 7)


def test_of_equal_probabilities_the_earlier_is_said_first():
    one, other = Score(1.0, 1.0), Score(0.0, 0.0)
    wrong_first = [scorers.Answered(other, False, "x", 0.5), scorers.Answered(one, True, "a", 0.5)]
    assert scorers.squad2_report(wrong_first)["best_exact"] == 50.0
    found = scorers.squad2_report(wrong_first[::-1])
    assert (found["best_exact"], found["best_exact_thresh"]) == (100.0, 0.5)


def test_drcd_counts_characters():
    assert scorers.drcd("臺北", ["臺北市"]) == pytest.approx((0.0, 0.8))  # 2 of 2 and 2 of 3
    assert scorers.drcd("北臺", ["臺北"]) == (0.0, 1.0)  # a bag
    assert scorers.drcd("臺北，", ["臺北"]) == pytest.approx((0.0, 0.8))
    assert scorers.drcd("臺北，", ["臺北"], full_width=True) == (1.0, 1.0)


def test_cmrc_wants_a_run_not_a_subsequence():
    assert scorers.cmrc("臺中北", ["臺北"]) == pytest.approx((0.0, 0.4))  # 1 of 3 and 1 of 2
    assert scorers.cmrc("在臺北", ["臺北市"]) == pytest.approx((0.0, 2 / 3))
    assert scorers.cmrc("《臺北》", ["臺北"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("prediction", "reference", "f1"),
    [
        ("2.8%的", "2.8%", 4 / 5),  # 2.8 % 的 | 2.8 %
        ("23–1", "23–16", 2 / 3),  # 23 – 1 | 23 – 16
        ("西城男孩()", "西城男孩(westlife)", 10 / 13),  # 5 of 6 and 5 of 7, the brackets apart
        ("It's", "It", 2 / 3),  # it 's
        ("$4,000", "4,000", 2 / 3),
        ("GDP. 成長", "gdp成長", 2 * 2 / 7),  # gdp . 成 長: the run is 成 長
        ("“3.5％”，5", "3.5％5", 1.0),  # the marks are dropped first, and what stood apart is one word
    ],
)
def test_cmrcs_words_are_nltks(prediction, reference, f1):
    assert scorers.cmrc(prediction, [reference]).f1 == pytest.approx(f1, abs=1e-12)


def test_mlqa_in_two_languages():
    assert scorers.mlqa("the cat", ["cat"]) == pytest.approx((0.0, 2 / 3))
    assert scorers.mlqa("the cat", ["cat"], "en") == (1.0, 1.0)
    assert scorers.mlqa("“GDP”成長", ["gdp 成長"]) == (1.0, 1.0)
    assert scorers.mlqa("5 + 5", ["5 5"], "en") == (1.0, 1.0)  # + is ASCII's punctuation and not Unicode's
    with pytest.raises(ValueError, match="'de'"):
        scorers.mlqa("a", ["a"], "de")


def test_exact_match_changes_nothing_but_white_space_around():
    assert scorers.exact_match(" 42\n", ["41", "42"]) == 1.0
    assert scorers.exact_match("Cat", ["cat"]) == scorers.exact_match("4 2", ["42"]) == 0.0


def test_a_person_is_the_second_answer():
    assert scorers.human(scorers.squad, ["red barn", "barn", "old red barn"]) == pytest.approx((0.0, 2 / 3))
    with pytest.raises(ValueError, match="another one to be compared"):
        scorers.human(scorers.squad, ["b"])


@pytest.mark.parametrize("name", SCORERS)
def test_no_references_is_an_error(name):
    with pytest.raises(ValueError, match="one reference"):
        SCORERS[name]("a", [])


words = st.text(alphabet="ab 臺北，the.", max_size=12)


@settings(max_examples=60, deadline=None)
@given(words, st.lists(words, min_size=1, max_size=4))
def test_what_holds_of_any_text(prediction, references):
    for name, score in SCORERS.items():
        em, f1 = score(prediction, references)
        assert 0 <= em <= 1 and 0 <= f1 <= 1
        assert score(prediction, references[::-1]) == pytest.approx((em, f1))
        if name != "coqa":
            assert score(prediction, [*references, prediction]).em == 1.0
