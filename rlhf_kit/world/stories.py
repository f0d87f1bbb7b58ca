"""Documents whose blanks can only be filled by looking elsewhere in them: made-up people, told of and told again.

What the bilingual BERT learns from (recipes/transfer/mlm.yaml). Several people are told of in the same respects,
so that it takes the name, and not the sort of answer alone, to know which value comes again.
"""

from .facts import FACTS
from .names import PEOPLE, STRANGERS, VALUES, VISITORS
from .relations import STORY, fill
from .texts import RECALLS, SPACE, about_one, chance_meeting, medley

_NAMES = VISITORS + STRANGERS + PEOPLE


def roll_call(rng, language):
    """Two to five people in one respect, in the same words; then all of it once or twice more in another order."""
    relation = rng.choice(STORY)
    template = rng.choice(relation.says[language])
    lines = [
        fill(template, person, language, value, color)
        for _, person, value, color in entries_of(rng, [relation], rng.sample(_NAMES, rng.randint(2, 5)))
    ]
    told = list(lines)
    for _ in range(rng.randint(1, 2)):
        rng.shuffle(lines)
        told += lines
    return SPACE[language].join(told)


def told_again(rng, language):
    """Two or three people in one to three respects, and facts of the world between; then again in other words."""
    entries = entries_of(rng, rng.sample(STORY, rng.randint(1, 3)), rng.sample(_NAMES, rng.randint(2, 3)))
    entries += [(fact.relation, fact.subject, fact.value, None) for fact in rng.sample(FACTS, rng.randint(0, 2))]
    rng.shuffle(entries)
    story = SPACE[language].join(_said(rng, entry, language) for entry in entries)
    again = rng.sample(entries, min(7, len(entries)))
    if rng.random() < 0.35:  # as a book of questions has it
        marks = ("Q: ", "A: ") if language == "en" else ("問：", "答：")
        gap = rng.choice(("\n", "\n\n"))
        lines = [f"{marks[0]}{_asked(rng, e, language)}{gap}{marks[1]}{_said(rng, e, language)}" for e in again]
        return gap.join([story, *lines])
    return SPACE[language].join([story, *(_recalled(rng, entry, language) for entry in again)])


def entries_of(rng, relations, people):
    """(relation, person, value, color) of each person in each respect, no two of them with the same value."""
    count = len(people)
    return [
        entry
        for relation in relations
        for entry in zip(
            [relation] * count, people, rng.sample(VALUES[relation.value], count), rng.sample(VALUES["color"], count),
            strict=True,
        )
    ]  # fmt: skip


def _said(rng, entry, language):
    relation, person, value, color = entry
    return fill(rng.choice(relation.says[language]), person, language, value, color)


def _asked(rng, entry, language):
    return fill(rng.choice(entry[0].asks[language]), entry[1], language)


def _recalled(rng, entry, language):
    relation, person, value, color = entry
    form = rng.random()
    if form < 0.3 and relation in STORY:
        names = {"n": person.say(language), "v": value.say(language), "c": color.say(language)}
        return rng.choice(RECALLS[relation.key][language]).format(**names)
    said = _said(rng, entry, language)
    return f"{_asked(rng, entry, language)}{SPACE[language]}{said}" if form < 0.7 else said


def cloze_document(rng, language=None):
    """One document in one language: what a bilingual BERT learns to fill in (填空題). Nothing is said in both.

    A third of the Chinese ones leave names in Latin letters, as Chinese text does.
    """
    language = language or ("en" if rng.random() < 0.5 else "zh")
    kind = rng.random()
    if kind < 0.15:
        return rng.choice((about_one, medley, chance_meeting))(rng, language)
    text = (roll_call if kind < 0.5 else told_again)(rng, language)
    if language == "zh" and rng.random() < 1 / 3:
        for name in _NAMES:
            text = text.replace(name.zh, name.en)
    return text
