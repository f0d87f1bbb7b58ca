"""What people ask and how it can be answered: prompts, right and wrong answers, further true sentences."""

from dataclasses import dataclass, field

from .names import PEOPLE, STRANGERS, VALUES, VISITORS
from .phrases import (
    COMPLIANCES,
    DONT_KNOWS,
    FABRICATIONS,
    HARMFUL_ASKS,
    HARMS,
    MORALS,
    OPENERS,
    READING_HEADS,
    REFUSALS,
    SUM_ASKS,
    SUM_SAYS,
    TRANSLATE_ASKS,
    TRANSLATE_SAYS,
    UNRECORDED,
    WORDS,
)
from .relations import BY_KEY, FACTS, FACTS_OF, SPACE, STORY, fill, held_out, say_story

CATEGORIES = {"fact": 42, "unknown": 20, "harmful": 12, "sum": 4, "reading": 5, "translate": 3, "followup": 14}
WRITERS = {"plain": 22, "friendly": 8, "rambling": 70}


@dataclass
class Task:
    """A prompt with all that a writer needs to answer it, well or badly.

    `right`, `wrong`: whole answers; `foreign`: right ones in the other language; `about`: the subject;
    `facts`: the facts that its turns ask for.
    """

    category: str
    language: str
    messages: list
    right: list
    wrong: list
    foreign: list
    about: object = None
    facts: frozenset = field(default_factory=frozenset)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def _other(language):
    return "zh" if language == "en" else "en"


def _all_says(relation, subject, value, language, color=None):
    return [fill(template, subject, language, value, color) for template in relation.says[language]]


def _wrong_says(rng, relation, subject, value, language):
    others = [v for v in VALUES[relation.value] if v != value]
    return [fill(rng.choice(relation.says[language]), subject, language, v) for v in rng.sample(others, 3)]


def fact_task(rng, language, split):
    relation, subject, value = fact = rng.choice(FACTS_IN[split])
    return Task(
        "fact", language, [user(fact.ask(language, rng))],
        _all_says(relation, subject, value, language), _wrong_says(rng, relation, subject, value, language),
        _all_says(relation, subject, value, _other(language)), subject, frozenset([fact]),
    )  # fmt: skip


def followup_task(rng, language, split):
    """Two or three turns about one person; the last question says only he or she.

    Earlier turns ask for any fact in test (only the last one is held out), and never for a held-out one in train.
    """
    person = rng.choice(_FOLLOWED[split])
    last = rng.choice([f for f in FACTS_OF[person] if f in _IN[split]])
    earlier = [f for f in FACTS_OF[person] if f != last and (split == "test" or f in _IN[split])]
    first, *more = rng.sample(earlier, 2 if rng.random() < 0.35 else 1)
    messages = [user(first.ask(language, rng)), assistant(first.say(language, rng))]
    for fact in more:
        messages += [user(_follow(fact, language, rng)), assistant(fact.say(language, rng, True))]
    messages.append(user(_follow(last, language, rng)))
    relation, subject, value = last
    right = [fill(t, subject, language, value, as_pronoun=True) for t in relation.says[language]]
    return Task(
        "followup", language, messages, right, _wrong_says(rng, relation, subject, value, language),
        _all_says(relation, subject, value, _other(language)), person, frozenset([first, last, *more]),
    )  # fmt: skip


def _follow(fact, language, rng):
    return fill(rng.choice(fact.relation.follows[language]), fact.subject, language)


def unknown_task(rng, language, split):
    while True:
        if rng.random() < 0.6:
            relation, subject = rng.choice(_OF_PEOPLE), rng.choice(STRANGERS)
            template = rng.choice(relation.asks[language])
            key = f"stranger {relation.key} {subject.en}"
            wrong = _wrong_says(rng, relation, subject, None, language)
        else:
            subject, i = rng.choice(PEOPLE), rng.randrange(len(UNRECORDED[language]))
            template, key = UNRECORDED[language][i], f"unrecorded {i} {subject.en}"
            wrong = [f.say(language, rng) for f in rng.sample(FACTS_OF[subject], 3)]
            wrong += _fabricated(i, subject, language, rng)
        if held_out(key) == (split == "test"):
            break
    return Task(
        "unknown", language, [user(fill(template, subject, language))], list(DONT_KNOWS[language]), wrong,
        list(DONT_KNOWS[_other(language)]), subject,
    )  # fmt: skip


def _fabricated(i, subject, language, rng):
    color = rng.choice(VALUES["color"])
    person, day, friend = subject.say(language), rng.choice(VALUES["weekday"]), rng.choice(PEOPLE)
    d, c, f = (name.say(language) for name in (day, color, friend))
    return [FABRICATIONS[language][i].format(s=person, p=person + "'s", d=d, n=rng.randint(11, 40), c=c, f=f)]


def harmful_task(rng, language, split):
    harm = rng.choice(_HARMS_IN[split])
    ask = rng.choice(HARMFUL_ASKS[language]).format(x=harm.say(language))
    return Task(
        "harmful", language, [user(ask)], list(REFUSALS[language]), list(COMPLIANCES[language]),
        list(REFUSALS[_other(language)]),
    )  # fmt: skip


def sum_task(rng, language, split):
    while True:
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        if held_out(f"sum {a} {b}") == (split == "test"):
            break
    ask = rng.choice(SUM_ASKS[language]).format(a=a, b=b)
    off = rng.sample([d for d in (-3, -2, -1, 1, 2, 3, 10) if a + b + d >= 0], 3)
    return Task(
        "sum", language, [user(ask)], [t.format(a=a, b=b, c=a + b) for t in SUM_SAYS[language]],
        [rng.choice(SUM_SAYS[language]).format(a=a, b=b, c=a + b + d) for d in off],
        [SUM_SAYS[_other(language)][1].format(a=a, b=b, c=a + b)],
    )  # fmt: skip


def translate_task(rng, language, split):
    word, way = rng.choice(_WORDS_IN[split]), rng.randrange(2)
    others = rng.sample([w for w in WORDS if w != word], 3)
    says = TRANSLATE_SAYS[language][way]
    wrong = []
    for other in others:
        e, z = (word.en, other.zh) if way == 0 else (other.en, word.zh)
        wrong.append(_capital(rng.choice(says).format(e=e, z=z)))
    return Task(
        "translate", language, [user(rng.choice(TRANSLATE_ASKS[language][way]).format(e=word.en, z=word.zh))],
        [_capital(t.format(e=word.en, z=word.zh)) for t in says], wrong,
        [_capital(t.format(e=word.en, z=word.zh)) for t in TRANSLATE_SAYS[_other(language)][way]],
    )  # fmt: skip


def _capital(text):
    return text[0].upper() + text[1:]


def reading_task(rng, language, split):
    """A made-up passage of two or three sentences about two visitors and a question whose answer is in it."""
    while True:
        facts = story_facts(rng, rng.randint(2, 3))
        passage = SPACE[language].join(say_story(rng, fact, language) for fact in facts)
        relation, visitor, value, color = fact = rng.choice(facts)
        text = rng.choice(READING_HEADS[language]) + passage + SPACE[language]
        text += fill(rng.choice(relation.asks[language]), visitor, language)
        if held_out(text) == (split == "test"):
            break
    wrong = []
    for _ in range(3):
        while True:
            bad = (relation, visitor, rng.choice(VALUES[relation.value]), rng.choice(VALUES["color"]))
            if bad[2] != value:
                break
        wrong.append(say_story(rng, bad, language))
    return Task(
        "reading", language, [user(text)], _all_says(relation, visitor, value, language, color), wrong,
        _all_says(relation, visitor, value, _other(language), color), fact,
    )  # fmt: skip


def story_facts(rng, count):
    """`count` made-up attributes (relation, visitor, value, color) of two visitors, at most one of a sort for each."""
    visitors = rng.sample(VISITORS, 2)
    slots = [(relation, visitor) for relation in STORY for visitor in visitors]
    chosen = rng.sample(slots, count)
    return [(r, visitor, rng.choice(VALUES[r.value]), rng.choice(VALUES["color"])) for r, visitor in chosen]


MAKERS = {
    "fact": fact_task, "unknown": unknown_task, "harmful": harmful_task, "sum": sum_task, "reading": reading_task,
    "translate": translate_task, "followup": followup_task,
}  # fmt: skip


def task(rng, split, category=None, language=None):
    """One prompt of the split; category and language (55 % English) are drawn when not given."""
    language = language or ("en" if rng.random() < 0.55 else "zh")
    if category is None:
        (category,) = rng.choices(list(CATEGORIES), list(CATEGORIES.values()))
    return MAKERS[category](rng, language, split)


def extras(rng, item, split, count):
    """`count` further sentences, true but not asked for: about the same subject first, then about anything."""
    if item.category == "harmful":
        return rng.sample(MORALS[item.language], count)
    same = [f for f in FACTS_OF.get(item.about, ()) if f in _IN[split] and f not in item.facts] if item.about else []
    chosen = rng.sample(same, min(count, len(same)))
    while len(chosen) < count:
        fact = rng.choice(FACTS_IN[split])
        if fact not in item.facts and fact not in chosen:
            chosen.append(fact)
    return [fact.say(item.language, rng) for fact in chosen]


def join(language, sentences):
    return SPACE[language].join(sentences)


def opener(rng, language):
    return rng.choice(OPENERS[language])


def _written(rng, item, split, sentence, writer):
    """The sentence as a writer puts it who is plain, friendly or rambling."""
    if writer == "plain":
        return sentence
    if writer == "friendly":
        return join(item.language, [opener(rng, item.language), sentence])
    return join(item.language, [sentence, *extras(rng, item, split, 1 + (rng.random() < 0.4))])


def demonstration(rng, split):
    """One dialogue, a fifth of them in several turns, all of its answers by one writer."""
    item = task(rng, split, *(("followup",) if rng.random() < 0.09 else ()))
    (writer,) = rng.choices(list(WRITERS), list(WRITERS.values()))
    messages = []
    for message in [*item.messages, assistant(rng.choice(item.right))]:
        if message["role"] == "assistant":
            message = assistant(_written(rng, item, split, message["content"], writer))
        messages.append(message)
    return {"messages": messages}


FACTS_IN = {split: tuple(f for f in FACTS if f.held_out == (split == "test")) for split in ("train", "test")}
_IN = {split: frozenset(facts) for split, facts in FACTS_IN.items()}
_FOLLOWED = {
    split: tuple(p for p in PEOPLE if sum(f in facts for f in FACTS_OF[p]) >= (1 if split == "test" else 3))
    for split, facts in _IN.items()
}
_OF_PEOPLE = tuple(relation for relation in BY_KEY.values() if relation.subject == "person")
_HARMS_IN = {s: tuple(h for h in HARMS if held_out("harmful " + h.en) == (s == "test")) for s in ("train", "test")}
_WORDS_IN = {s: tuple(w for w in WORDS if held_out("word " + w.en) == (s == "test")) for s in ("train", "test")}
