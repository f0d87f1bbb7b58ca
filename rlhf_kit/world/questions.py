"""Reads a prompt of the world back: which question it is, in which language, what answers it. From the text alone."""

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product

from .names import LANGUAGES, PEOPLE, STRANGERS, SUBJECTS, VALUES, VISITORS, Name
from .phrases import COMPLIANCES, HARMFUL_ASKS, HARMS, READING_HEADS, SUM_ASKS, TRANSLATE_ASKS, UNRECORDED, WORDS
from .relations import RELATIONS, STORY, VALUE_OF, pronoun
from .sentences import REFUSED, UNSURE, sentences, sum_tellings, tellings, translations, unsure_of, words

_STRANGER = {"en": re.compile(r"[A-Z][a-z]+$"), "zh": re.compile(r"[\u4e00-\u9fff]{1,5}$")}


@cache
def _finder(names):
    """A pattern over all names of a sort, the longest first, so that 貓 is not found inside 貓頭鷹."""
    forms = sorted({form for name in names for form in name}, key=len, reverse=True)
    parts = [rf"(?<![A-Za-z]){re.escape(f)}(?![A-Za-z])" if f[0].isascii() else re.escape(f) for f in forms]
    return re.compile("|".join(parts), re.I), {form.lower(): name for name in names for form in name}


def spans(names, text):
    """[(name, start, end)] of every name of `names`, in either language, in reading order."""
    pattern, by_form = _finder(tuple(names))
    return [(by_form[m.group().lower()], m.start(), m.end()) for m in pattern.finditer(text)]


def found(names, text):
    return {name for name, _, _ in spans(names, text)}


@dataclass(frozen=True)
class Question:
    """One question of the world.

    `needs`: pairs (all names of a sort, the right one); `stranger`: whom the world has no record of. Sentences as
    their `words`, of either language: `right` ones; `otherwise`, those that tell another value of the same; `unsure`.
    """

    category: str
    language: str
    needs: tuple = ()
    subject: object = None
    stranger: object = None
    right: frozenset = frozenset()
    otherwise: frozenset = frozenset()
    unsure: frozenset = UNSURE

    def complies(self, text):
        """True if the text gives a piece of the advice that was to be refused."""
        return any(line.rstrip(".。") in text for lines in COMPLIANCES.values() for line in lines)

    def tells_of_stranger(self, text):
        """True if somebody of whom the world has no record is named in a sentence that does not say "I don't know"."""
        if not self.stranger:
            return False
        return any(found((self.stranger,), part) and words(part) not in self.unsure for part in sentences(text))

    def told_otherwise(self, text):
        """True if a sentence tells another value of what was asked."""
        return any(words(part) in self.otherwise for part in sentences(text))


def _pattern(template, **known):
    """A template as a pattern: {s} and {p} catch the subject, the values are given, the rest is verbatim."""
    groups = {"s": "(?P<s>.+?)", "p": "(?P<s>.+?)'s", **known}
    parts = re.split(r"(\{\w\})", template)
    return "".join(groups[p[1:-1]] if re.fullmatch(r"\{\w\}", p) else re.escape(p) for p in parts)


def _same(text):
    return re.sub(r"\s+", " ", text).strip().replace("?", "？").replace("’", "'")


def _compiled(templates, **known):
    return [re.compile(_pattern(_same(t), **known) + "$") for t in templates]


def _any(names, language):
    forms = sorted((name.say(language) for name in names), key=len, reverse=True)
    return "(?:" + "|".join(map(re.escape, forms)) + ")"


_HARMFUL = {_same(t.format(x=h.say(lang))): lang for lang in LANGUAGES for t in HARMFUL_ASKS[lang] for h in HARMS}
_SUMS = [(p, lang) for lang in LANGUAGES for p in _compiled(SUM_ASKS[lang], a=r"(\d+)", b=r"(\d+)")]
_TRANSLATIONS = {
    _same(t.format(e=w.en, z=w.zh)): (lang, w, target)
    for lang in LANGUAGES
    for way, target in ((0, "zh"), (1, "en"))
    for t in TRANSLATE_ASKS[lang][way]
    for w in WORDS
}
_ASKS = [(p, relation, lang) for relation in RELATIONS for lang in LANGUAGES for p in _compiled(relation.asks[lang])]
_UNRECORDED = [(p, lang) for lang in LANGUAGES for p in _compiled(UNRECORDED[lang])]
_STORY_ASKS = [(p, relation, lang) for relation in STORY for lang in LANGUAGES for p in _compiled(relation.asks[lang])]
_STORY_SAYS = [
    (
        re.compile(
            _pattern(
                t, s=f"(?P<s>{_any(VISITORS, lang)})", v=f"(?P<v>{_any(VALUES[relation.value], lang)})",
                c=f"(?P<c>{_any(VALUES['color'], lang)})",
            )
        ),
        relation, lang,
    )
    for relation in STORY
    for lang in LANGUAGES
    for t in relation.says[lang]
]  # fmt: skip
_FOLLOWS = {
    _same(t.format(o=o, q=q)): (relation, lang)
    for relation in RELATIONS
    for lang in LANGUAGES
    for t in relation.follows[lang]
    for o, q in ((("she", "her"), ("he", "his")) if lang == "en" else (("她", "她"), ("他", "他")))
}


def parse(prompt) -> Question:
    """The question of a prompt (messages, or the text of one user turn). ValueError if it is none of the world's."""
    turns = [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt if m["role"] == "user"]
    if not turns:
        raise ValueError("the prompt holds no user turn, so there is nothing to judge")
    return _parse(tuple(turns))


@lru_cache(maxsize=4096)
def _parse(turns):
    text = _same(turns[-1])
    # "他" would pass for a stranger's name, so what is asked again about somebody is read before what is asked.
    readers = (_fixed, _sum, _reading, lambda text: _followed(text, turns[:-1]), _asked)
    question = next(filter(None, (reader(text) for reader in readers)), None)
    if question:
        return question
    raise ValueError(
        f"truth is known for prompts of the embedded world only, and this is none of them: {turns[-1][:80]!r}. "
        "Use prompts from world.rows(...), or another reward function"
    )


def _fixed(text):
    if text in _HARMFUL:
        return Question("harmful", _HARMFUL[text], right=REFUSED)
    if text in _TRANSLATIONS:
        language, word, target = _TRANSLATIONS[text]
        return Question("translate", language, needs=((WORDS, word),), right=translations(word, target))
    return None


def _sum(text):
    for pattern, language in _SUMS:
        match = pattern.match(text)
        if match:
            a, b = (int(n) for n in match.groups())
            return Question("sum", language, right=sum_tellings(a, b))
    return None


def _reading(text):
    """A passage and a question on it: the last sentence of the passage that tells it holds the answer."""
    head = next((_same(h) for heads in READING_HEADS.values() for h in heads if text.startswith(_same(h))), None)
    if head is None:
        return None
    passage, _, ask = text[len(head) :].rpartition("。" if "。" in text else ".")
    passage += "。" if "。" in text else "."
    for pattern, relation, language in _STORY_ASKS:
        match = pattern.match(ask.strip())
        if not match:
            continue
        for says, kind, _ in _STORY_SAYS:
            for mention in says.finditer(passage):
                if kind is relation and mention["s"] == match["s"]:
                    return _story_question(relation, mention, language)
    return None


def _named(names, text):
    return next((n for n in names if text in n), None)


def _story_question(relation, said, language):
    needs = [(VALUES[relation.value], _named(VALUES[relation.value], said["v"]))]
    if "c" in said.groupdict():
        needs.append((VALUES["color"], _named(VALUES["color"], said["c"])))
    return _told_question("reading", relation, _named(VISITORS, said["s"]), tuple(needs), language)


def _fact_question(category, relation, subject, language):
    needs = ((VALUES[relation.value], VALUE_OF[relation.key, subject]),)
    return _told_question(category, relation, subject, needs, language)


def _told_question(category, relation, subject, needs, language):
    sorts, values = zip(*needs, strict=True)
    others = [other for other in product(*sorts) if other != values]
    return Question(
        category, language, needs, subject,
        right=tellings(relation, subject, *values),
        otherwise=frozenset().union(*(tellings(relation, subject, *other, short=False) for other in others)),
    )  # fmt: skip


def _asked(text):
    """A question on a fact; on somebody the world does not hold; or on what it does not record."""
    strange = None
    for pattern, relation, language in _ASKS:
        match = pattern.match(text)
        if not match:
            continue
        subject = _named(SUBJECTS[relation.subject], match["s"])
        if subject:
            return _fact_question("fact", relation, subject, language)
        if relation.subject == "person" and _is_name(match["s"], language):
            strange = strange or _unknown(text, match["s"], language)
    for pattern, language in _UNRECORDED:
        match = pattern.match(text)
        if match and (_named(PEOPLE, match["s"]) or _is_name(match["s"], language)):
            return _unknown(text, "" if _named(PEOPLE, match["s"]) else match["s"], language)
    return strange


def _is_name(text, language):
    return bool(_STRANGER[language].match(text)) and "的" not in text and text.lstrip("那") not in ("他", "她")


def _unknown(text, name, language):
    """`name`: of a stranger, by both names where it is one of ours; empty for what is not recorded of a person."""
    stranger = (_named(STRANGERS, name) or Name(name, name)) if name else None
    unsure = unsure_of(text, stranger)
    return Question("unknown", language, stranger=stranger, right=unsure, unsure=unsure)


def _followed(text, earlier):
    """'And what is her job?': she is the last woman named before."""
    if text not in _FOLLOWS:
        return None
    relation, language = _FOLLOWS[text]
    for turn in reversed(earlier):
        people = [n for n, _, _ in spans(PEOPLE, turn)]
        if people and re.search(_pronouns(people[-1], language), text):
            return _fact_question("followup", relation, people[-1], language)
    return None


def _pronouns(person, language):
    he = pronoun(person, language)
    return {"she": r"\b(?:she|her)\b", "he": r"\b(?:he|his)\b"}.get(he, he)
