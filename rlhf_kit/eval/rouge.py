"""ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum of a summary, in any script, or several in one text.

Units are the runs of letters and digits of the text in lower case, English words Porter-stemmed when longer than three
letters; in scripts that put no space between words, every character by itself. For English this is what the
`rouge_score` package computes with its stemmer; of "café" it sees "caf" alone.

Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", sections 2 and 3.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence

import regex

from rlhf_kit.eval.porter import stem

logger = logging.getLogger(__name__)

STEMMED_FROM = 4  # letters
UNCOUNTED = "has no letter or digit that ROUGE counts"
# Kana, ideographs with their extensions and compatibility forms, Hangul. Their punctuation is left out, as ASCII's is.
CJK = (
    "\u3005-\u3007\u3041-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U000323af"
)
# Letters of the same scripts that stand elsewhere, and of those whose words no space parts (UAX 14, class SA).
ALONE = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}\p{Yi}\p{Tangut}\p{Nushu}"
    r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Ahom}"
)
MARK = rf"[[\p{{Mn}}\p{{Mc}}]--[{CJK}\p{{Variation_Selector}}]]"  # vowel signs and accents belong to their letter
LETTER = rf"[[[\p{{L}}\p{{Nl}}]--[{CJK}{ALONE}]]\p{{Nd}}]"
UNIT = regex.compile(rf"(?V1)[{CJK}]|[\p{{L}}&&[{ALONE}]]{MARK}*|{LETTER}(?:{LETTER}|{MARK})*")
WIDTH = regex.compile(r"[\uff01-\uffee]+")  # full-width letters and digits, half-width kana and Hangul
JOINERS = dict.fromkeys(map(ord, "\u200c\u200d"))  # shape letters inside a word (Persian, Hindi)


def rouge(prediction: str, reference: str, stemmed: bool = True) -> dict[str, float]:
    """F1 of each, 0 to 1, by its usual name. Lines are sentences, which only rougeLsum looks at.

    Papers that ran the Perl script on summaries of several sentences report what is called rougeLsum here.
    Against a reference without units all are 0, whatever was predicted: it is logged.

    >>> rouge("the cats sat", "a cat sat")["rouge1"]
    0.6666666666666666
    """
    predicted, theirs = units(prediction, stemmed), units(reference, stemmed)
    if not theirs:
        logger.warning("The reference %r %s: ROUGE is 0, whatever is predicted.", reference[:40], UNCOUNTED)
    return {
        "rouge1": _overlap(predicted, theirs, 1),
        "rouge2": _overlap(predicted, theirs, 2),
        "rougeL": _f1(len(_common_subsequence(theirs, predicted)), len(predicted), len(theirs)),
        "rougeLsum": _of_sentences(*(_sentences(text, stemmed) for text in (prediction, reference))),
    }


def units(text: str, stemmed: bool = True) -> list[str]:
    narrow = WIDTH.sub(lambda run: unicodedata.normalize("NFKC", run[0]), text)
    tokens = UNIT.findall(unicodedata.normalize("NFC", narrow).lower().translate(JOINERS))
    return (
        [stem(unit) if len(unit) >= STEMMED_FROM and unit.isascii() else unit for unit in tokens]
        if stemmed
        else tokens
    )


def _sentences(text: str, stemmed: bool) -> list[list[str]]:
    return [units(line, stemmed) for line in text.split("\n") if line]


def _overlap(mine: Sequence[str], theirs: Sequence[str], n: int) -> float:
    """F1 of the two bags of n-grams."""
    grams = [Counter(zip(*(side[at:] for at in range(n)), strict=False)) for side in (mine, theirs)]
    return _f1((grams[0] & grams[1]).total(), *(bag.total() for bag in grams))


def _of_sentences(mine: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> float:
    """Summary-level ROUGE-L: units of each reference sentence that it shares, in their order, with any sentence.

    A unit counts no more often than it stands in either summary. Source: section 3.2.
    """
    left = [Counter(unit for sentence in side for unit in sentence) for side in (mine, theirs)]
    total_mine, total_theirs = (bag.total() for bag in left)
    shared = 0
    for sentence in theirs:
        union = sorted({at for other in mine for at in _common_subsequence(sentence, other)})
        for unit in (sentence[at] for at in union):
            if all(bag[unit] > 0 for bag in left):
                shared += 1
                for bag in left:
                    bag[unit] -= 1
    return _f1(shared, total_mine, total_theirs)


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> list[int]:
    """Places in `first` of one longest common subsequence."""
    lengths = [[0] * (len(second) + 1)]
    for unit in first:
        above, here = lengths[-1], [0]
        for at, other in enumerate(second):
            here.append(above[at] + 1 if unit == other else max(above[at + 1], here[at]))
        lengths.append(here)
    common, i, j = [], len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            i, j = i - 1, j - 1
            common.append(i)
        elif lengths[i][j - 1] > lengths[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return common[::-1]


def _f1(shared: int, mine: int, theirs: int) -> float:
    if not shared:
        return 0.0
    precision, recall = shared / mine, shared / theirs
    return 2 * precision * recall / (precision + recall)
