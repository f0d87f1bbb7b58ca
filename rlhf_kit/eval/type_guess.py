"""The score of guessing on the embedded world's questions about passages: any answer of the right type.

"Where does Anna live?" asks for a town: who has not read on guesses one of the towns that stand in the passage. A
model has read when it scores above the mean of those guesses. Which relation a question asks, and of which type its
values are, is the world's own knowledge (`world.relations`, `world.names`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from rlhf_kit.eval.scorers import Score, Scorer
from rlhf_kit.world.names import PEOPLE, STRANGERS, SUBJECTS, VALUES, VISITORS
from rlhf_kit.world.relations import RELATIONS, STORY, Relation

WHO = PEOPLE + VISITORS + STRANGERS
ASKED_ABOUT = SUBJECTS | {"person": WHO, "visitor": WHO}
PRONOUNS = {"en": {"o": "she|he", "q": "her|his"}, "zh": {"o": "她|他", "q": "她|他"}}
JOINT = {"en": " ", "zh": "的"}  # of a color and a thing


def type_guess(context: str, question: str, language: str) -> list[str]:
    """The texts in a passage that answer by their type, in order, each once; none where the world asks no such thing.

    Of a name that is part of a longer one (tea, of the tea house) only the longer one stands there.

    Args:
        question: of CoQA's or SQuAD's form, about somebody by name or by pronoun.
        language: "en" or "zh", of both.

    >>> type_guess("Nora came by bus. Rita traveled by taxi. Rita has a red hat.", "How did Rita come?", "en")
    ['bus', 'taxi']
    """
    relation = asked(question, language)
    if relation is None:
        return []
    if relation.key == "carry":  # its values are pairs, of a color and a thing
        pair = _any(VALUES["color"], language) + JOINT[language] + _any(VALUES["thing"], language)
        return list(dict.fromkeys(re.findall(_bounded(pair, language), context)))
    of_type = {name.say(language) for name in VALUES[relation.value]}
    return [text for text in dict.fromkeys(_all_names(language).findall(context)) if text in of_type]


def asked(question: str, language: str) -> Relation | None:
    """The relation that a question of the world asks for; None where it is no such question."""
    return next((one for one in (*RELATIONS, *STORY) if _questions(one, language).fullmatch(question.strip())), None)


def guess_score(scorer: Scorer, candidates: Sequence[str], references: Sequence[str]) -> Score:
    """What one of the candidates, drawn at random, scores in the mean. Raises ValueError without candidates."""
    if not candidates:
        raise ValueError("there is nothing to guess")
    scores = [scorer(candidate, references) for candidate in candidates]
    return Score(*(sum(column) / len(scores) for column in zip(*scores, strict=True)))


@cache
def _questions(relation: Relation, language: str) -> re.Pattern:
    """All forms of its question about anybody whom it may be asked of."""
    subject = _any(ASKED_ABOUT[relation.subject], language)
    parts = {"s": subject, "p": subject + "'s"}
    parts |= {key: f"(?:{words})" for key, words in PRONOUNS[language].items()}
    forms = [
        "".join(parts[piece] if at % 2 else re.escape(piece) for at, piece in enumerate(re.split(r"\{(\w)\}", form)))
        for form in (*relation.asks[language], *relation.follows[language])
    ]
    return re.compile("|".join(forms), re.IGNORECASE)


@cache
def _all_names(language: str) -> re.Pattern:
    everything = [*WHO, *(name for part in (*SUBJECTS.values(), *VALUES.values()) for name in part)]
    return re.compile(_bounded(_any(everything, language), language))


def _any(names: Sequence, language: str) -> str:
    """One of the names, the longest that fits."""
    texts = sorted({name.say(language) for name in names}, key=lambda text: (-len(text), text))
    return f"(?:{'|'.join(map(re.escape, texts))})"


def _bounded(pattern: str, language: str) -> str:
    """English words are whole words; Chinese has no borders between them."""
    return rf"\b{pattern}\b" if language == "en" else pattern
