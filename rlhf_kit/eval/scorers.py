"""Scores of short answers against reference answers, as the official scripts of six datasets compute them.

Each takes a prediction and the references of one question, and gives exact match and F1 from 0 to 1; the score of a
dataset is 100 x the mean over its questions, one without a prediction counting 0. NLTK is needed for CMRC's words.

Sources: Reddy et al. 2019, "CoQA" (evaluate-v1.0.py); Rajpurkar et al. 2016, "SQuAD" (evaluate-v1.1.py); Rajpurkar et
al. 2018, "SQuAD 2.0" (evaluate-v2.0.py); Shao et al. 2018, "DRCD" (section 4; issue 6 of its repository); Cui et al.
2019, "CMRC 2018" (cmrc2018_evaluate.py v6); Lewis et al. 2020, "MLQA" (mlqa_evaluation_v1.py).
"""

from __future__ import annotations

import functools
import importlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

ASCII_PUNCTUATION = frozenset(string.punctuation)
DRCD_PUNCTUATION = frozenset("《》？，。、；：")
# Its list has …… as well: two characters, which no one character equals.
CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
ARTICLES = re.compile(r"\b(a|an|the)\b")
CHINESE = re.compile("[\u4e00-\u9fa5]")  # as CMRC and MLQA have it: not all of Unicode's ideographs

# CoQA's name of a source in the data -> in the report.
IN_DOMAIN = {
    "mctest": "children_stories",
    "gutenberg": "literature",
    "race": "mid-high_school",
    "cnn": "news",
    "wikipedia": "wikipedia",
}
OUT_DOMAIN = {"science": "science", "reddit": "reddit"}
DOMAINS = IN_DOMAIN | OUT_DOMAIN


class Score(NamedTuple):
    """Of one question, 0 to 1. `em`: exact match."""

    em: float
    f1: float


Scorer = Callable[[str, Sequence[str]], Score]

# ------------------------------------------------------------------------------------------
# The scorers


def coqa(prediction: str, references: Sequence[str]) -> Score:
    """CoQA: the best score against all references but one, averaged over which one is left out.

    So a person among n is scored alike, who has no own answer to match. Equal references are not merged.
    """
    pairs = [_coqa_pair(prediction, reference) for reference in _given(references)]
    if len(pairs) == 1:
        return pairs[0]
    return _mean([_best(pairs[:left_out] + pairs[left_out + 1 :]) for left_out in range(len(pairs))])


def squad(prediction: str, references: Sequence[str]) -> Score:
    """SQuAD v1.1: words, without case, ASCII punctuation and articles; the best over references. Also XQuAD's."""
    return _best([_squad_pair(prediction, reference) for reference in _given(references)])


def squad2(prediction: str, references: Sequence[str]) -> Score:
    """SQuAD 2.0: as v1.1, but with no references, or none with a word, the empty answer is the right one."""
    wanted = [reference for reference in references if _normalised(reference)] or [""]
    return _best([_coqa_pair(prediction, reference) for reference in wanted])


def drcd(prediction: str, references: Sequence[str], full_width: bool = False) -> Score:
    """DRCD: SQuAD's, with F1 over the bag of characters, spaces included.

    Args:
        full_width: leave 《》？，。、；： out too, as DRCD's authors describe it. Without, their published human row
            comes out to 0.02.
    """
    dropped = ASCII_PUNCTUATION | DRCD_PUNCTUATION if full_width else ASCII_PUNCTUATION
    predicted = _normalised(prediction, dropped)
    theirs = [_normalised(reference, dropped) for reference in _given(references)]
    return _best([Score(float(predicted == text), _overlap(predicted, text)) for text in theirs])


def cmrc(prediction: str, references: Sequence[str]) -> Score:
    """CMRC 2018: F1 of the longest run that both share, in Chinese characters and NLTK's words of everything else."""
    return _best([_cmrc_pair(prediction, reference) for reference in _given(references)])


def mlqa(prediction: str, references: Sequence[str], language: str = "zh") -> Score:
    """MLQA: F1 over Chinese characters and words of everything else ("zh"), or over words without articles ("en").

    Without case, ASCII punctuation and what Unicode calls punctuation.
    """
    if language not in ("en", "zh"):
        raise ValueError(f"MLQA in {language!r}: only 'en' and 'zh' are supported")
    predicted = _mlqa_units(prediction, language)
    theirs = [_mlqa_units(reference, language) for reference in _given(references)]
    return _best([Score(float(predicted == units), _overlap(predicted, units)) for units in theirs])


SCORERS: dict[str, Scorer] = {
    "squad": squad,
    "squad2": squad2,
    "drcd": drcd,
    "drcd-full-width": partial(drcd, full_width=True),
    "cmrc": cmrc,
    "mlqa-en": partial(mlqa, language="en"),
    "mlqa-zh": partial(mlqa, language="zh"),
}
SQUAD2 = "squad2"  # whose questions may have no answer


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 if the prediction is one of the references, but for white space around it: nothing is normalised."""
    return float(prediction.strip() in [reference.strip() for reference in _given(references)])


# ------------------------------------------------------------------------------------------
# Of a whole dataset


def human(scorer: Scorer, answers: Sequence[str]) -> Score:
    """How a person scores: the second answer to the question against the others (SQuAD, section 6).

    Raises ValueError with fewer than two answers.
    """
    if len(answers) < 2:
        raise ValueError("a person's answer needs another one to be compared with")
    return scorer(answers[1], [*answers[:1], *answers[2:]])


def coqa_human(answers: Sequence[str]) -> Score:
    """How a person scores by CoQA: each answer in turn against the others. Raises ValueError with fewer than two."""
    if len(answers) < 2:
        raise ValueError("a person's answer needs another one to be compared with")
    others = [[*answers[:at], *answers[at + 1 :]] for at in range(len(answers))]
    return _mean([_best([_coqa_pair(answers[at], other) for other in others[at]]) for at in range(len(answers))])


class Answered(NamedTuple):
    """A question of SQuAD 2.0: whether it has an answer, and what was said.

    `score` is `squad2`'s. `na_prob`: how likely it has none, by the model; None = not told, as where nothing was said.
    """

    score: Score
    has_answer: bool
    prediction: str
    na_prob: float | None = None


def squad2_report(asked: Sequence[Answered], na_prob_thresh: float = 1.0) -> dict[str, float]:
    """The official report: {"exact", "f1", "total", "HasAns_exact", ..., "NoAns_exact", ..., "best_exact", ...}.

    Args:
        asked: in the order of the file of `na_prob`s: of equal ones the earlier stands before the later here too.
        na_prob_thresh: above it a question counts as one to which nothing was said. `best_f1_thresh` is the one with
            the highest F1, `best_f1`. Without any `na_prob` neither is there.
    """
    figures = {}
    for prefix, part in (
        ("", asked),
        ("HasAns_", [one for one in asked if one.has_answer]),
        ("NoAns_", [one for one in asked if not one.has_answer]),
    ):
        if part:
            em, f1 = _columns([_thresholded(one, na_prob_thresh) for one in part])
            figures |= {f"{prefix}exact": 100 * sum(em) / len(part), f"{prefix}f1": 100 * sum(f1) / len(part)}
            figures[f"{prefix}total"] = len(part)
    for name, at in (("exact", 0), ("f1", 1)):
        if any(one.na_prob is not None for one in asked):
            figures[f"best_{name}"], figures[f"best_{name}_thresh"] = _best_threshold(asked, at)
    return figures


def _thresholded(one: Answered, na_prob_thresh: float) -> Score:
    if one.na_prob is None or one.na_prob <= na_prob_thresh:
        return one.score
    return Score(*[float(not one.has_answer)] * 2)


def _best_threshold(asked: Sequence[Answered], at: int) -> tuple[float, float]:
    """The highest percentage of a figure, and the `na_prob` up to which the answers must stand for it."""
    ranked = sorted((one for one in asked if one.na_prob is not None), key=lambda one: one.na_prob)
    best = score = sum(not one.has_answer for one in ranked)  # nothing is said to any
    threshold = 0.0
    for one in ranked:
        score += one.score[at] if one.has_answer else -bool(one.prediction)
        if score > best:
            best, threshold = score, one.na_prob
    return 100 * best / len(asked), threshold


def coqa_report(turns: Iterable[tuple[str, Score]]) -> dict[str, dict[str, float]]:
    """The official report: {domain: {"em", "f1", "turns"}}, with "in_domain", "out_domain" and "overall".

    Args:
        turns: the data's source (a key of DOMAINS; another one is a domain of its own, out of domain) and the score
            of each turn. Every turn weighs the same; figures are percentages rounded to 0.1, as the script has them.
    """
    parts: dict[str, list[Score]] = {name: [] for name in DOMAINS.values()}
    totals: dict[str, list[Score]] = {"in_domain": [], "out_domain": [], "overall": []}
    for source, score in turns:
        parts.setdefault(DOMAINS.get(source, source), []).append(score)
        totals["in_domain" if source in IN_DOMAIN else "out_domain"].append(score)
        totals["overall"].append(score)
    return {name: _percentages(scores) for name, scores in (parts | totals).items()}


def _percentages(scores: Sequence[Score]) -> dict[str, float]:
    em, f1 = (round(100 * sum(column) / max(1, len(scores)), 1) for column in _columns(scores))
    return {"em": em, "f1": f1, "turns": len(scores)}


# ------------------------------------------------------------------------------------------
# One prediction against one reference


def _coqa_pair(prediction: str, reference: str) -> Score:
    """As SQuAD's, but two answers of articles and punctuation alone agree."""
    predicted, theirs = _normalised(prediction), _normalised(reference)
    words = predicted.split(), theirs.split()
    f1 = _overlap(*words) if all(words) else float(words[0] == words[1])
    return Score(float(predicted == theirs), f1)


def _squad_pair(prediction: str, reference: str) -> Score:
    predicted, theirs = _normalised(prediction), _normalised(reference)
    return Score(float(predicted == theirs), _overlap(predicted.split(), theirs.split()))


def _cmrc_pair(prediction: str, reference: str) -> Score:
    predicted, theirs = (_without(text.lower().strip(), CMRC_PUNCTUATION) for text in (prediction, reference))
    units = _cmrc_units(predicted), _cmrc_units(theirs)
    shared = _longest_shared_run(*units)
    return Score(float(predicted == theirs), _f1(shared, *map(len, units)))


def _cmrc_units(text: str) -> list[str]:
    """Chinese characters, and NLTK's words of what stands between them. "長2.8%的" -> "長", "2.8", "%", "的"."""
    parts = re.split(f"({CHINESE.pattern})", text)  # Chinese characters at odd places
    return [unit for at, part in enumerate(parts) for unit in ([part] if at % 2 else _words().tokenize(part))]


@functools.cache
def _words() -> Any:
    """The tokenizer behind `nltk.word_tokenize`; loaded when it is asked for, since NLTK takes a second."""
    return importlib.import_module("nltk.tokenize.destructive").NLTKWordTokenizer()


def _normalised(text: str, dropped: frozenset[str] = ASCII_PUNCTUATION) -> str:
    """Without case, `dropped`, articles and superfluous white space, in this order."""
    return " ".join(ARTICLES.sub(" ", _without(text.lower(), dropped)).split())


def _mlqa_units(text: str, language: str) -> list[str]:
    kept = "".join(char for char in text.lower() if not _is_punctuation(char))
    return ARTICLES.sub(" ", kept).split() if language == "en" else _mixed_units(kept)


def _is_punctuation(char: str) -> bool:
    return char in ASCII_PUNCTUATION or unicodedata.category(char).startswith("P")


def _without(text: str, dropped: frozenset[str]) -> str:
    return "".join(char for char in text if char not in dropped)


def _mixed_units(text: str) -> list[str]:
    """Chinese characters, and what stands between them and spaces. "GDP成長 3.5" -> "GDP", "成", "長", "3.5"."""
    return CHINESE.sub(r" \g<0> ", text).split()


def _overlap(mine: Sequence[str], theirs: Sequence[str]) -> float:
    """F1 of two bags; 0 where they share nothing, both empty included."""
    shared = sum((Counter(mine) & Counter(theirs)).values())
    return _f1(shared, len(mine), len(theirs))


def _f1(shared: int, mine: int, theirs: int) -> float:
    if not shared:
        return 0.0
    precision, recall = shared / mine, shared / theirs
    return 2 * precision * recall / (precision + recall)


def _longest_shared_run(mine: Sequence[str], theirs: Sequence[str]) -> int:
    longest, above = 0, [0] * (len(theirs) + 1)
    for unit in mine:
        here = [0] + [above[at] + 1 if unit == other else 0 for at, other in enumerate(theirs)]
        longest, above = max(longest, *here), here
    return longest


def _best(scores: Sequence[Score]) -> Score:
    """EM and F1 each on its own, of different references perhaps: so do all the scripts."""
    return Score(*map(max, _columns(scores)))


def _mean(scores: Sequence[Score]) -> Score:
    return Score(*(sum(column) / len(scores) for column in _columns(scores)))


def _columns(scores: Sequence[Score]) -> tuple[list[float], list[float]]:
    return [score.em for score in scores], [score.f1 for score in scores]


def _given(references: Sequence[str]) -> Sequence[str]:
    if not references:
        raise ValueError("a question needs at least one reference answer")
    return references
