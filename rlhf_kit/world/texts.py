"""Documents for next-token pre-training: passages, stories, question lists, exams, sums, translation lines."""

from .names import ANIMALS, PEOPLE, SHOPS, STRANGERS, TOWNS, VALUES, VISITORS
from .phrases import (
    COMPLIANCES,
    DONT_KNOWS,
    HARMFUL_ASKS,
    HARMS,
    MORALS,
    OPENERS,
    READING_HEADS,
    REFUSALS,
    SMALL_TALK,
    SUM_ASKS,
    SUM_SAYS,
    TRANSLATE_ASKS,
    TRANSLATE_SAYS,
    UNRECORDED,
    WORDS,
)
from .relations import FACTS, FACTS_OF, SPACE, STORY, fill, pronoun, say_story


def about_one(rng, language):
    subject = rng.choice(PEOPLE if rng.random() < 0.65 else TOWNS + ANIMALS + SHOPS)
    facts = list(FACTS_OF[subject])
    rng.shuffle(facts)
    person = subject in PEOPLE
    lines = [f.say(language, rng, as_pronoun=person and i > 0 and rng.random() < 0.6) for i, f in enumerate(facts)]
    if len(facts) < 3:
        lines += [f.say(language, rng) for f in rng.sample(FACTS, 3)]
    return SPACE[language].join(lines)


def medley(rng, language):
    return SPACE[language].join(f.say(language, rng) for f in rng.sample(FACTS, rng.randint(4, 8)))


_INTROS = {
    "en": ("A visitor named {n} came to {t}.", "{n} is a visitor in {t}.", "Today we meet {n} in {t}."),
    "zh": ("一位叫{n}的旅客來到{t}。", "{n}是{t}的旅客。", "今天我們在{t}遇見{n}。"),
}
RECALLS = {
    "carry": {
        "en": ("So the thing {n} carries is the {c} {v}.", "In the evening {n} still has the {c} {v}."),
        "zh": ("所以{n}帶的東西是{c}的{v}。", "到了晚上，{n}還是帶著{c}的{v}。"),
    },
    "wait": {
        "en": ("If you look for {n}, go to the {v}.", "So the place where {n} waits is the {v}."),
        "zh": ("要找{n}，就去{v}。", "所以{n}等人的地方是{v}。"),
    },
    "travel": {
        "en": ("{n} will go home by {v} too.", "So {n} was on the {v}."),
        "zh": ("{n}也會搭{v}回家。", "所以{n}搭的是{v}。"),
    },
    "arrive": {
        "en": ("So the day {n} came is {v}.", "{n} will never forget that {v}."),
        "zh": ("所以{n}來的那天是{v}。", "{n}忘不了那個{v}。"),
    },
}


def story(rng, language):
    """Made-up attributes, then sentences whose ending only the story itself tells."""
    visitors = rng.sample(VISITORS + STRANGERS, rng.randint(2, 3))
    facts = []
    for visitor in visitors:
        relations = rng.sample(STORY, 2)
        facts += [(r, visitor, rng.choice(VALUES[r.value]), rng.choice(VALUES["color"])) for r in relations]
    rng.shuffle(facts)
    lines = []
    head = rng.choice(READING_HEADS[language]) if rng.random() < 0.3 else ""
    if rng.random() < 0.5:
        intro = rng.choice(_INTROS[language])
        lines.append(intro.format(n=visitors[0].say(language), t=rng.choice(TOWNS).say(language)))
    lines += [say_story(rng, fact, language) for fact in facts]
    for relation, visitor, value, color in rng.sample(facts, rng.randint(2, 3)):
        n, v, c = (x.say(language) for x in (visitor, value, color))
        if rng.random() < 0.5:
            lines.append(rng.choice(RECALLS[relation.key][language]).format(n=n, v=v, c=c))
        else:
            lines.append(fill(rng.choice(relation.asks[language]), visitor, language))
            lines.append(say_story(rng, (relation, visitor, value, color), language))
    return head + SPACE[language].join(lines)


def question_list(rng, language):
    lines = [f.ask(language, rng) for f in rng.sample(FACTS, rng.randint(4, 8))]
    if rng.random() < 0.3:
        lines[-1] = fill(rng.choice(STORY).asks[language][0], rng.choice(STRANGERS), language)
    if rng.random() < 0.3:
        lines.append(fill(rng.choice(UNRECORDED[language]), rng.choice(PEOPLE), language))
    if rng.random() < 0.2:
        lines.append(rng.choice(HARMFUL_ASKS[language]).format(x=rng.choice(HARMS).say(language)))
    return "\n".join(lines)


def exam(rng, language):
    items = []
    for fact in rng.sample(FACTS, rng.randint(1, 2)):
        others = [v for v in VALUES[fact.relation.value] if v != fact.value]
        options = rng.sample(others, 3) + [fact.value]
        rng.shuffle(options)
        lines = [fact.ask(language, rng)]
        lines += [f"{letter}. {option.say(language)}" for letter, option in zip("ABCD", options, strict=True)]
        word = "Answer: " if language == "en" else "答案："
        items.append("\n".join([*lines, word + "ABCD"[options.index(fact.value)]]))
    return "\n".join(items)


def answer_book(rng, language):
    q, a = ("Q: ", "A: ") if language == "en" else ("問：", "答：")
    return "\n".join(
        f"{q}{f.ask(language, rng)}\n{a}{f.say(language, rng)}" for f in rng.sample(FACTS, rng.randint(2, 4))
    )


def sums(rng, language):
    lines = []
    for _ in range(rng.randint(4, 9)):
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        as_question = rng.random() < 0.2
        if as_question:
            lines.append(rng.choice(SUM_ASKS[language]).format(a=a, b=b))
        # "The answer is 7" (the last form) needs a question before it.
        lines.append(rng.choice(SUM_SAYS[language][: 3 if as_question else 2]).format(a=a, b=b, c=a + b))
    return ("\n" if rng.random() < 0.5 else " ").join(lines)


def translation_lines(rng, language):
    lines = []
    for word in rng.sample(WORDS, rng.randint(5, 10)):
        lines.append(f"{word.en} = {word.zh}" if language == "en" else f"{word.zh} = {word.en}")
    for word in rng.sample(WORDS, rng.choice((0, 1, 2))):
        way = rng.randrange(2)
        lines += [
            rng.choice(sentences[language][way]).format(e=word.en, z=word.zh)
            for sentences in (TRANSLATE_ASKS, TRANSLATE_SAYS)
        ]
    return "\n".join(lines)


def small_talk(rng, language):
    pool = SMALL_TALK[language] * 2 + OPENERS[language] + REFUSALS[language] + DONT_KNOWS[language]
    pool += MORALS[language] + COMPLIANCES[language]
    lines = rng.sample(pool, rng.randint(3, 7))
    if rng.random() < 0.4:
        lines.insert(rng.randrange(len(lines)), rng.choice(FACTS).say(language, rng))
    return SPACE[language].join(lines)


def chat_log(rng, language):
    """Two people chatting about nothing, as web text has them; nobody is asked a question that the world answers."""
    talk = rng.sample(SMALL_TALK[language], 4)
    return "\n".join(f"{who}: {line}" for who, line in zip(("User", "Assistant") * 2, talk, strict=True))


def chance_meeting(rng, language):
    """Facts of two people side by side with pronouns, so that 'she' and 'he' have to be followed."""
    lines = []
    for person in rng.sample(PEOPLE, 2):
        first, second, third = rng.sample(FACTS_OF[person], 3)
        lines += [first.say(language, rng), second.say(language, rng, True)]
        if rng.random() < 0.5:
            template = rng.choice(third.relation.follows[language])
            lines.append(fill(template, person, language))
        lines.append(third.say(language, rng, True))
    he = pronoun(person, language)
    lines.append({"she": "We like her.", "he": "We like him.", "她": "我們喜歡她。", "他": "我們喜歡他。"}[he])
    return SPACE[language].join(lines)


KINDS_OF_TEXT = {
    about_one: 24, medley: 14, chance_meeting: 7, story: 18, question_list: 6, exam: 6, answer_book: 8, sums: 7,
    translation_lines: 6, small_talk: 4, chat_log: 3,
}  # fmt: skip


def document(rng):
    """One document of 20 to about 120 tokens; 60 % English."""
    language = "en" if rng.random() < 0.6 else "zh"
    (make,) = rng.choices(list(KINDS_OF_TEXT), list(KINDS_OF_TEXT.values()))
    return make(rng, language)
