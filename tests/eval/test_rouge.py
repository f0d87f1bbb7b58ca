"""ROUGE beside the outputs of `rouge_score` 0.1.2, and in Chinese counted by hand."""

import re

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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Сегодня в Москве дождь.", ["сегодня", "в", "москве", "дождь"]),
        ("Καλημέρα, ΣΑΣ!", ["καλημέρα", "σας"]),
        ("مرحبا بالعالم ١٢٣", ["مرحبا", "بالعالم", "١٢٣"]),
        ("आज हवामान छान आहे।", ["आज", "हवामान", "छान", "आहे"]),  # vowel signs belong to their letters
        ("আবহাওয়া", ["আবহাওয়া"]),
        ("ที่บ้าน ๑๒", ["ที่", "บ้", "า", "น", "๑๒"]),  # no spaces between words: by characters, with their marks
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("ＡＢ１２ ｶﾞｽ", ["ab12", "ガ", "ス"]),  # full width, half width
        ("café café", ["café", "café"]),
        ("한국 한 ㅋㅋ", ["한", "국", "한", "ㅋ", "ㅋ"]),
        ("می‌خواهم", ["میخواهم"]),
        ("Tiếng Việt, naïve", ["tiếng", "việt", "naïve"]),  # not stemmed: no English
        ("m² 1️⃣ ❤️a 葛󠄀", ["m", "1", "a", "葛"]),
        ("😀👩‍💻 — … ½ ①", []),
    ],
)
def test_units_of_every_script(text, expected):
    assert units(text) == expected
    if expected:
        found = rouge(text, text)
        assert found["rouge1"] == found["rougeL"] == found["rougeLsum"] == pytest.approx(1)


KNOWN = "[a-z0-9]+|[々-〇ぁ-ヺー-ヿ㐀-䶿一-鿿가-힣]"
known = st.text(st.sampled_from("aZ09_-.' \n々〇ぁがーァ・。，「」『』—…“”甲鿿가힣😀™²"), max_size=20)


@settings(max_examples=100, deadline=None)
@given(known)
def test_letters_digits_and_cjk_are_what_they_were(text):
    """Runs of a-z and 0-9 as `rouge_score` cuts them, CJK by characters: written as one pattern."""
    assert units(text, stemmed=False) == re.findall(KNOWN, text.lower())


def test_a_reference_without_a_unit_is_told(caplog):
    assert set(rouge("anything", "😀").values()) == {0.0}
    assert "The reference '😀' has no letter or digit that ROUGE counts: ROUGE is 0" in caplog.text


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
