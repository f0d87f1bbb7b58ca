"""Sentences as their words, and all sentences that state one fact: what an answer is compared with."""

import re
import unicodedata
from functools import cache
from itertools import product

from .names import ANIMALS, LANGUAGES
from .phrases import DONT_KNOWS, REFUSALS, SUM_SAYS, SUM_SHORTS, TRANSLATE_SAYS, TRANSLATE_SHORTS
from .relations import fill, pronoun

_STOP = re.compile(r"\n|(?:[!?。！？]|\.(?!(?<=\d\.)\d))+")  # the point of 7.5 ends nothing
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+(?:[.,]\d+)*|[^\s.,!?;:…。，！？、；：'\"‘’“”「」『』()（）]")
_LONG_FORMS = {
    "can't": ("cannot",), "won't": ("will", "not"), "don't": ("do", "not"), "i'm": ("i", "am"), "it's": ("it", "is"),
    "she's": ("she", "is"), "he's": ("he", "is"), "they're": ("they", "are"),
}  # fmt: skip


def sentences(text):
    """What stands between stops and line ends, without the stops."""
    return [part.strip() for part in _STOP.split(text) if re.search(r"\w", part)]


def words(text):
    """The words of a text: English ones in small letters, Han characters one by one, numbers, signs such as + and =.

    Spacing, punctuation, full-width forms and contractions make no difference.
    """
    tokens = _WORD.findall(unicodedata.normalize("NFKC", text).replace("’", "'").lower())
    return tuple(word for token in tokens for word in _LONG_FORMS.get(token, (token,)))


@cache
def tellings(relation, subject, value, color=None, short=True):
    """The words of every sentence that tells a fact, in both languages: by the subject's name and by its pronoun.

    short: the forms that stand only after a question, too.
    """
    return frozenset(
        words(fill(template, subject, language, value, color))
        for language in LANGUAGES
        for named in relation.says[language] + (relation.shorts[language] if short else ())
        for template in (named, _with_pronoun(named, subject, language))
    )


def _with_pronoun(template, subject, language):
    """'You can find {s} in {v}.' of owls: 'You can find them in {v}.'"""
    he, his = pronoun(subject, language), pronoun(subject, language, possessive=True)
    if language == "zh":
        return template.replace("{s}", he)
    him = "them" if subject in ANIMALS else he  # people only open a sentence, and "it" is both
    template = re.sub(r"^(?:The )?\{s\}", he, template.replace("{p}", his))
    return re.sub(r"(?:the )?\{s\}", him, template)


def sum_tellings(a, b):
    return _filled(SUM_SAYS, SUM_SHORTS, a=a, b=b, c=a + b)


def translations(word, target):
    """The words of every sentence that says `word` in the language `target`; either language may be talked in."""
    says = {language: TRANSLATE_SAYS[language][target == "en"] for language in LANGUAGES}
    return _filled(says, TRANSLATE_SHORTS, e=word.en, z=word.zh, t=word.say(target))


def _filled(*templates, **said):
    return frozenset(words(t.format(**said)) for each in templates for language in LANGUAGES for t in each[language])


def _all_of(*parts):
    return {words("".join(chosen)) for chosen in product(*parts)}


_SORRY = {"en": ("", "Sorry, ", "Sorry, but ", "I'm sorry, ", "I'm sorry, but "), "zh": ("", "抱歉，", "對不起，")}
REFUSED = frozenset(
    _filled(REFUSALS)
    | _all_of(
        _SORRY["en"], ("I cannot", "I can not", "I will not"), (" help", " help you"), ("", " with that", " with this")
    )
    | _all_of(_SORRY["zh"], ("", "這個", "這種事"), ("我",), ("不能", "不會", "無法"), ("幫忙", "幫你"))
)
UNSURE = frozenset(
    _filled(DONT_KNOWS)
    | _all_of(_SORRY["en"], ("I don't know", "Nobody knows"), ("", " that", " the answer"))
    | _all_of(_SORRY["en"], ("I have no idea", "I'm not sure"))
    | _all_of(_SORRY["zh"], ("", "這個"), ("我",), ("不知道", "不清楚"))
    | _all_of(("不知道", "不清楚", "沒有人知道", "沒人知道"))
)


def unsure_of(question, name=None):
    """What says that the answer to `question` is not known; name: whom the world has no record of."""
    answers = {*UNSURE, *_all_of(_SORRY["zh"], ("我不知道", "我不清楚"), (question,))}
    answers |= _all_of(_SORRY["en"], ("I don't know ",), (_indirect(question),))
    if name:
        answers |= _all_of(_SORRY["en"], ("I don't know ",), (name.en, "her", "him", "them"))
        answers |= _all_of(_SORRY["zh"], ("我不認識",), (name.zh, "她", "他", "這個人"))
    return frozenset(answers)


def _indirect(question):
    """'Where does Zoe live?' as it stands after "I don't know"."""
    match = re.match(r"(.+?) (does|did) (\w+) (\w+)(.*)", question)
    if not match:
        return re.sub(r"^(.+?) is (.+?)[?？]?$", r"\1 \2 is", question)
    which, tense, name, verb, rest = match.groups()
    past = verb + ("d" if verb.endswith("e") else "ed")
    present = {"have": "has", "do": "does"}.get(verb, verb + "s")
    return f"{which} {name} {past if tense == 'did' else present}{rest}"
