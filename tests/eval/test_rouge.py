"""ROUGE beside the outputs of `rouge_score` 0.1.2, and in Chinese counted by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_kit.eval.porter import stem
from rlhf_kit.eval.rouge import rouge, units

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
# prediction, reference, F1 with stems, F1 without: printed by rouge_score.
CASES = [
    (
        "The dogs were running in the parks.\nA child watched them happily.",
        "A child watched happily.\nThe dog runs in a park.",
        (0.8181818181818182, 0.39999999999999997, 0.45454545454545453, 0.8181818181818182),
        (0.5454545454545454, 0.19999999999999998, 0.3636363636363636, 0.5454545454545454),
    ),
    (
        "It rained; it rained, and it RAINED again!",
        "It rained again.",
        (0.5454545454545454, 0.4444444444444445, 0.5454545454545454, 0.5454545454545454),
        (0.5454545454545454, 0.4444444444444445, 0.5454545454545454, 0.5454545454545454),
    ),
    (
        "The museum's 3 relational databases failed on 12 May 2020.",
        "Three relational databases of the museum have failed in May 2020.",
        (0.6363636363636364, 0.3, 0.45454545454545453, 0.45454545454545453),
        (0.6363636363636364, 0.3, 0.45454545454545453, 0.45454545454545453),
    ),
    (
        "one two three four\nfive six",
        "six five\nfour three two one",
        (1.0, 0.0, 0.16666666666666666, 0.3333333333333333),
        (1.0, 0.0, 0.16666666666666666, 0.3333333333333333),
    ),
    ("", "Something.", (0, 0, 0, 0), (0, 0, 0, 0)),
]


@pytest.mark.parametrize("prediction, reference, stemmed, plain", CASES)
def test_as_rouge_score_has_it(prediction, reference, stemmed, plain):
    assert tuple(rouge(prediction, reference)[name] for name in NAMES) == pytest.approx(stemmed, abs=1e-12)
    found = rouge(prediction, reference, stemmed=False)
    assert tuple(found[name] for name in NAMES) == pytest.approx(plain, abs=1e-12)


def test_chinese_goes_by_characters():
    """貓 在 睡 覺 against 黑 貓 睡 覺: three of four, one pair (睡覺) of three, 貓睡覺 in order."""
    assert rouge("貓在睡覺。", "黑貓睡覺") == pytest.approx(
        {"rouge1": 0.75, "rouge2": 1 / 3, "rougeL": 0.75, "rougeLsum": 0.75}
    )
    assert units("GDP成長3.5%，カナとcats") == ["gdp", "成", "長", "3", "5", "カ", "ナ", "と", "cat"]
    assert units("His was tied") == ["his", "was", "tie"]  # three letters stay


def test_sentences_are_lines_for_lsum_alone():
    found = rouge("乙丙\n甲乙", "甲乙\n乙丙")
    assert found["rougeL"] == 0.5 and found["rougeLsum"] == 1.0
    # A reference sentence told in two: what each of them shares is put together.
    assert rouge("丙丁\n甲乙", "甲乙丙丁")["rougeLsum"] == 1.0


def test_a_repeated_word_is_counted_as_often_as_both_have_it():
    assert rouge("甲", "甲\n甲")["rougeLsum"] == pytest.approx(2 / 3)
    assert rouge("甲甲甲", "甲")["rougeLsum"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "word, expected",
    [
        # From Porter's paper, rule by rule.
        ("caresses", "caress"), ("ponies", "poni"), ("cats", "cat"), ("agreed", "agre"), ("plastered", "plaster"),
        ("bled", "bled"), ("sing", "sing"), ("conflated", "conflat"), ("hopping", "hop"), ("falling", "fall"),
        ("filing", "file"), ("happy", "happi"), ("relational", "relat"), ("digitizer", "digit"),
        ("vietnamization", "vietnam"), ("hopefulness", "hope"), ("electriciti", "electr"), ("formative", "form"),
        ("revival", "reviv"), ("adoption", "adopt"), ("rate", "rate"), ("probate", "probat"), ("cease", "ceas"),
        ("controll", "control"), ("roll", "roll"),
        # NLTK's changes.
        ("dying", "die"), ("ties", "tie"), ("died", "die"), ("spied", "spi"), ("skies", "sky"), ("by", "by"),
        ("enjoy", "enjoy"), ("hopefully", "hope"), ("geology", "geolog"), ("radically", "radic"), ("ool", "ool"),
    ],
)  # fmt: skip
def test_stems(word, expected):
    assert stem(word) == expected


texts = st.text(alphabet="甲乙丙 a\n", max_size=12)


@settings(max_examples=60, deadline=None)
@given(texts, texts)
def test_what_holds_of_any_text(first, second):
    found, turned = rouge(first, second), rouge(second, first)
    assert all(0 <= value <= 1 for value in found.values())
    assert found["rougeL"] <= found["rouge1"] + 1e-12 and found["rougeLsum"] <= found["rouge1"] + 1e-12
    for name in ("rouge1", "rouge2", "rougeL"):
        assert found[name] == pytest.approx(turned[name])
    if units(first):
        assert rouge(first, first)["rougeLsum"] == pytest.approx(1.0)
