"""Every fact of the world, and how it is said and asked: sentence templates in English and Traditional Chinese.

Facts are fixed: they come from a constant seed and never from the `seed` of a data set.
A fact is (relation, subject, value); subject and value are `Name`s, so each fact can be said in both languages.
"""

import hashlib
import random
from dataclasses import dataclass
from typing import NamedTuple

from .names import ANIMALS, SHOPS, SUBJECTS, TOWNS, VALUES, WOMEN, WOMEN_AWAY, Name

SPACE = {"en": " ", "zh": ""}  # between sentences


@dataclass(frozen=True, eq=False)
class Relation:
    """How a fact of one sort is said, asked, and asked again about 'her' or 'him', and answered in a word or two.

    {s} subject, {p} its possessive, {v} value, {a} value with article, {o} and {q} the pronoun and its possessive.
    """

    key: str
    subject: str
    value: str
    says: dict
    asks: dict
    follows: dict
    shorts: dict


def _relation(key, subject, value, en, zh, ask_en, ask_zh, follow_en="", follow_zh="", *, short_en="", short_zh=""):
    """A relation from templates written one after the other, divided by bars."""
    says, asks, follows, shorts = (
        {"en": tuple(filter(None, english.split("|"))), "zh": tuple(filter(None, chinese.split("|")))}
        for english, chinese in ((en, zh), (ask_en, ask_zh), (follow_en, follow_zh), (short_en, short_zh))
    )
    return Relation(key, subject, value, says, asks, follows, shorts)


RELATIONS = (
    _relation(
        "lives", "person", "town",
        "{s} lives in {v}.|{p} home is in {v}.|{s} has a house in {v}.",
        "{s}住在{v}。|{s}的家在{v}。|{v}是{s}住的地方。",
        "Where does {s} live?|Which town does {s} live in?|Where is {p} home?",
        "{s}住在哪裡？|{s}住在哪個鎮？|{s}的家在哪裡？",
        "And where does {o} live?|Where is {q} home?", "那{o}住在哪裡？|{o}的家在哪裡？",
        short_en="{v}.|In {v}.", short_zh="{v}。|在{v}。",
    ),
    _relation(
        "job", "person", "job",
        "{s} is {a}.|{s} works as {a}.|{p} job is being {a}.", "{s}是{v}。|{s}的工作是{v}。|{s}的職業是{v}。",
        "What is {p} job?|What does {s} do for work?|What does {s} work as?",
        "{s}的工作是什麼？|{s}是做什麼的？|{s}的職業是什麼？",
        "And what is {q} job?|What does {o} do for work?", "那{o}的工作是什麼？|{o}是做什麼的？",
        short_en="{v}.|{a}.|As {a}.", short_zh="{v}。",
    ),
    _relation(
        "pet", "person", "pet",
        "{s} has {a}.|{s} keeps {a} at home.|{p} pet is {a}.", "{s}養了一隻{v}。|{s}家裡有一隻{v}。|{s}的寵物是{v}。",
        "What pet does {s} have?|What is {p} pet?|Which animal does {s} keep?",
        "{s}養什麼寵物？|{s}的寵物是什麼？|{s}家裡養什麼動物？",
        "And what pet does {o} have?|What is {q} pet?", "那{o}養什麼寵物？|{o}的寵物是什麼？",
        short_en="{v}.|{a}.|It is {a}.", short_zh="{v}。|一隻{v}。",
    ),
    _relation(
        "food", "person", "food",
        "{s} likes {v} best.|{p} favorite food is {v}.|{s} loves to eat {v}.",
        "{s}最愛吃{v}。|{s}最喜歡的食物是{v}。|{s}喜歡吃{v}。",
        "What is {p} favorite food?|What does {s} like to eat?|What food does {s} love?",
        "{s}最喜歡的食物是什麼？|{s}最愛吃什麼？|{s}喜歡吃什麼？",
        "And what does {o} like to eat?|What is {q} favorite food?", "那{o}喜歡吃什麼？|{o}最愛吃什麼？",
        short_en="{v}.|It is {v}.", short_zh="{v}。",
    ),
    _relation(
        "plays", "person", "instrument",
        "{s} plays the {v}.|{s} can play the {v}.|{p} instrument is the {v}.",
        "{s}會演奏{v}。|{s}的樂器是{v}。|{s}常常練習{v}。",
        "What instrument does {s} play?|What does {s} play?|What is {p} instrument?",
        "{s}會演奏什麼樂器？|{s}的樂器是什麼？|{s}練習什麼樂器？",
        "And what instrument does {o} play?|What is {q} instrument?", "那{o}會演奏什麼樂器？|{o}的樂器是什麼？",
        short_en="{v}.|The {v}.|It is the {v}.", short_zh="{v}。",
    ),
    _relation(
        "moved", "person", "reason",
        "{s} moved because {o} {v}.|{s} moved house because {o} {v}.|{s} left the old home because {o} {v}.",
        "{s}搬家是因為{v}。|因為{v}，{s}搬家了。|{s}會搬家，因為{v}。",
        "Why did {s} move?|Why did {s} move house?|For what reason did {s} move?",
        "{s}為什麼搬家？|為什麼{s}要搬家？|{s}搬家的原因是什麼？",
        "And why did {o} move?|Why did {o} move house?", "那{o}為什麼搬家？|{o}搬家的原因是什麼？",
        short_en="Because {o} {v}.|Because {s} {v}.|{s} {v}.", short_zh="{v}。|因為{v}。|因為{s}{v}。",
    ),
    _relation(
        "region", "town", "region",
        "{s} is in the {v}.|{s} lies in the {v}.|You can find {s} in the {v}.",
        "{s}在{v}。|{s}位在{v}。|{s}是{v}的小鎮。",
        "Where is {s}?|In which part of the country is {s}?|Where does {s} lie?",
        "{s}在哪裡？|{s}位在哪個地區？|{s}是哪裡的小鎮？",
        short_en="{v}.|The {v}.|In the {v}.", short_zh="{v}。|在{v}。|{v}的小鎮。",
    ),
    _relation(
        "river", "town", "river",
        "The {v} runs through {s}.|{s} is on the {v}.|The river in {s} is the {v}.",
        "{v}流過{s}。|{s}旁邊有{v}。|{s}的河是{v}。",
        "Which river runs through {s}?|What is the river in {s}?|Which river is {s} on?",
        "哪條河流過{s}？|{s}旁邊有哪條河？|{s}的河是哪一條？",
        short_en="{v}.|The {v}.|It is the {v}.", short_zh="{v}。",
    ),
    _relation(
        "known", "town", "product",
        "{s} is known for its {v}.|People visit {s} for its {v}.|{s} makes very good {v}.",
        "{s}以{v}聞名。|{s}的名產是{v}。|大家都去{s}買{v}。",
        "What is {s} known for?|What does {s} make?|Why do people visit {s}?",
        "{s}以什麼聞名？|{s}的名產是什麼？|大家去{s}買什麼？",
        short_en="{v}.|Its {v}.|For its {v}.", short_zh="{v}。",
    ),
    _relation(
        "market", "town", "weekday",
        "The market in {s} is on {v}.|{s} has its market on {v}.|On {v} there is a market in {s}.",
        "{s}的市集在{v}。|{v}是{s}的市集日。|{s}每個{v}都有市集。",
        "When is the market in {s}?|On which day does {s} have its market?|What is the market day of {s}?",
        "{s}的市集在星期幾？|{s}哪一天有市集？|{s}的市集日是哪一天？",
        short_en="{v}.|On {v}.|It is on {v}.", short_zh="{v}。|在{v}。|每個{v}。",
    ),
    _relation(
        "home", "animal", "home",
        "{s} live in {v}.|You can find {s} in {v}.|The home of {s} is in {v}.",
        "{s}住在{v}。|{s}的家在{v}。|{s}喜歡待在{v}。",
        "Where do {s} live?|Where can you find {s}?|Where is the home of {s}?",
        "{s}住在哪裡？|{s}的家在哪裡？|{s}喜歡待在哪裡？",
        short_en="{v}.|In {v}.", short_zh="{v}。|在{v}。",
    ),
    _relation(
        "diet", "animal", "diet",
        "{s} eat {v}.|{s} like to eat {v}.|The food of {s} is {v}.", "{s}吃{v}。|{s}愛吃{v}。|{s}的食物是{v}。",
        "What do {s} eat?|What do {s} like to eat?|What is the food of {s}?",
        "{s}吃什麼？|{s}愛吃什麼？|{s}的食物是什麼？",
        short_en="{v}.", short_zh="{v}。",
    ),
    _relation(
        "opens", "shop", "hour",
        "The {s} opens at {v}.|The {s} is open from {v}.|The doors of the {s} open at {v}.",
        "{s}早上{v}開門。|{s}從{v}開始營業。|{s}的開門時間是{v}。",
        "When does the {s} open?|What time does the {s} open?|At what time do the doors of the {s} open?",
        "{s}幾點開門？|{s}幾點開始營業？|{s}的開門時間是幾點？",
        short_en="{v}.|At {v}.|From {v}.", short_zh="{v}。|早上{v}。",
    ),
    _relation(
        "closed", "shop", "closing",
        "The {s} closed because {v}.|The {s} was closed because {v}.|Last week the {s} closed because {v}.",
        "{s}休息是因為{v}。|因為{v}，{s}休息了。|上星期{s}休息，因為{v}。",
        "Why did the {s} close?|Why was the {s} closed?|Why did the {s} close last week?",
        "{s}為什麼休息？|為什麼{s}休息了？|上星期{s}為什麼休息？",
        short_en="{v}.|Because {v}.", short_zh="{v}。|因為{v}。",
    ),
)  # fmt: skip
BY_KEY = {relation.key: relation for relation in RELATIONS}

# What a made-up story says of a visitor. "carry" has two values, a color and a thing.
STORY = (
    _relation(
        "carry", "visitor", "thing",
        "{s} carries a {c} {v}.|{s} has a {c} {v}.", "{s}帶著{c}的{v}。|{s}有{c}的{v}。",
        "What does {s} carry?|What does {s} have?", "{s}帶著什麼？|{s}有什麼？",
        "What does {o} carry?", "{o}帶著什麼？",
        short_en="{c} {v}.|A {c} {v}.", short_zh="{c}的{v}。",
    ),
    _relation(
        "wait", "visitor", "place",
        "{s} waits at the {v}.|{s} is waiting at the {v}.", "{s}在{v}等人。|{s}正在{v}等人。",
        "Where does {s} wait?|Where is {s} waiting?", "{s}在哪裡等人？|{s}正在哪裡等人？",
        "Where does {o} wait?", "{o}在哪裡等人？",
        short_en="{v}.|The {v}.|At the {v}.", short_zh="{v}。|在{v}。",
    ),
    _relation(
        "travel", "visitor", "vehicle",
        "{s} came by {v}.|{s} traveled by {v}.", "{s}搭{v}來。|{s}是搭{v}來的。",
        "How did {s} come?|How did {s} travel?", "{s}怎麼來的？|{s}是搭什麼來的？",
        "How did {o} come?", "{o}怎麼來的？",
        short_en="{v}.|By {v}.", short_zh="{v}。|搭{v}。",
    ),
    _relation(
        "arrive", "visitor", "weekday",
        "{s} arrived on {v}.|{s} got here on {v}.", "{s}{v}到。|{s}在{v}抵達。",
        "When did {s} arrive?|On which day did {s} get here?", "{s}星期幾到？|{s}在哪一天抵達？",
        "When did {o} arrive?", "{o}星期幾到？",
        short_en="{v}.|On {v}.", short_zh="{v}。|在{v}。",
    ),
)  # fmt: skip

# What documents with blanks say besides: values in digits, which both languages write the same.
COUNTED = (
    _relation(
        "room", "visitor", "number",
        "{s} sleeps in room {v}.|{s} has room {v}.|The room of {s} is {v}.",
        "{s}睡在{v}號房。|{s}住{v}號房。|{s}的房間是{v}號。", "Which room does {s} have?", "{s}住幾號房？",
    ),
    _relation(
        "age", "visitor", "number",
        "{s} is {v} years old.|The age of {s} is {v}.", "{s}今年{v}歲。|{s}的年紀是{v}歲。",
        "How old is {s}?", "{s}今年幾歲？",
    ),
    _relation(
        "pay", "visitor", "number",
        "{s} paid {v} coins.|{s} gave {v} coins.", "{s}付了{v}元。|{s}給了{v}元。",
        "How much did {s} pay?", "{s}付了多少錢？",
    ),
    _relation(
        "time", "visitor", "clock",
        "{s} came at {v}.|{s} got here at {v}.", "{s}{v}到。|{s}在{v}抵達。",
        "At what time did {s} come?", "{s}幾點到？",
    ),
)  # fmt: skip

_ASIDES = (" this time", " as always", " after all", ", they say", ", it seems")


def with_aside(rng, template, language):
    """Half of the English templates with words that say nothing, so that a value does not always end its sentence.

    In Chinese it seldom does: the verb comes after.
    """
    if language == "zh" or rng.random() < 0.5:
        return template
    return f"{template[:-1]}{rng.choice(_ASIDES)}."


_PRONOUNS = dict.fromkeys(TOWNS + SHOPS, ("it", "its", "它")) | dict.fromkeys(ANIMALS, ("they", "their", "牠們"))


def is_woman(name):
    return name in WOMEN or name in WOMEN_AWAY


def pronoun(name, language, possessive=False):
    """Of a person, a town, an animal or a shop."""
    he, his, ta = _PRONOUNS.get(name) or (("she", "her", "她") if is_woman(name) else ("he", "his", "他"))
    if language == "zh":
        return ta
    return his if possessive else he


def fill(template, subject, language, value=None, color=None, as_pronoun=False):
    """One template as a sentence; `as_pronoun` says She / 她 where the subject opens the sentence."""
    name, he = subject.say(language), pronoun(subject, language)
    his = pronoun(subject, language, possessive=True)
    word = value.say(language) if value else ""
    owner = name + "'s"
    if as_pronoun and template.startswith(("{s}", "{p}")):
        name, owner = he, his
    article = ("an " if word[:1] in "aeiou" else "a ") + word
    text = template.format(s=name, p=owner, v=word, a=article, o=he, q=his, c=color.say(language) if color else "")
    return text[0].upper() + text[1:]


def say_story(rng, fact, language):
    relation, visitor, value, color = fact
    return fill(rng.choice(relation.says[language]), visitor, language, value, color)


class Fact(NamedTuple):
    relation: Relation
    subject: Name
    value: Name

    @property
    def held_out(self):
        """True for the facts that are asked about in test splits only (about one in five)."""
        return held_out(f"fact {self.relation.key} {self.subject.en}")

    def say(self, language, rng, as_pronoun=False):
        template = rng.choice(self.relation.says[language])
        return fill(template, self.subject, language, self.value, as_pronoun=as_pronoun)

    def ask(self, language, rng):
        return fill(rng.choice(self.relation.asks[language]), self.subject, language)


def held_out(key):
    """The one rule that divides train from test: a fifth of all keys, by their SHA-256."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 5 == 0


def _all_facts():
    rng = random.Random(20240613)
    facts = []
    for relation in RELATIONS:
        subjects, values = SUBJECTS[relation.subject], list(VALUES[relation.value])
        if relation.subject == "animal":
            # Animals are not invented: what they eat and where they live stands in the lists, in order;
            # penguins, the last, eat fish as cats, the first, do.
            values = [*values, values[0]][: len(subjects)]
        else:
            values = (values * len(subjects))[: len(subjects)]
            rng.shuffle(values)
        facts += [Fact(relation, subject, value) for subject, value in zip(subjects, values, strict=True)]
    return tuple(facts)


FACTS = _all_facts()
FACTS_OF = {subject: tuple(f for f in FACTS if f.subject == subject) for kind in SUBJECTS.values() for subject in kind}
VALUE_OF = {(fact.relation.key, fact.subject): fact.value for fact in FACTS}
