"""Documents whose blanks can only be filled by looking elsewhere in them: made-up people, told of and told again.

What the world's BERTs learn from (recipes/world/mlm.yaml). Several people are told of in the same respects, so that
it takes the name, and not the sort of answer alone, to know which value comes again.
"""

from .names import PEOPLE, STRANGERS, VALUES, VISITORS, Name
from .relations import COUNTED, SPACE, STORY, fill, with_aside
from .texts import RECALLS, about_one, chance_meeting, medley

_NAMES = VISITORS + STRANGERS + PEOPLE

# What both languages write the same, as they do digits, brands and abbreviations: all that ties a kind of value in
# English to the same kind in Chinese. It stands in these documents only, never in a question.
_INTERNATIONAL = {
    "vehicle": ("MRT", "YouBike", "Uber", "Vespa", "TGV", "Lime"),
    "place": ("7-Eleven", "KTV", "IKEA", "SOGO", "Costco", "SPA"),
    "thing": ("iPad", "CD", "USB", "LEGO", "DVD", "Kindle", "PS5", "Switch"),
    "weekday": tuple(f"{month}/{day}" for month in range(1, 13) for day in range(1, 29)),
    "number": tuple(map(str, range(2, 100))),
    "clock": tuple(f"{hour}:{minute}" for hour in range(1, 13) for minute in range(10, 60)),
}
_VALUES = VALUES | {key: tuple(Name(word, word) for word in _INTERNATIONAL[key]) for key in ("number", "clock")}


def entries_of(rng, relations, people):
    """[(relation, person, value, color)] of each person in each respect, no two of them with the same value."""
    count = len(people)
    return [
        entry
        for relation in relations
        for entry in zip(
            [relation] * count, people, rng.sample(_VALUES[relation.value], count), rng.sample(VALUES["color"], count),
            strict=True,
        )
    ]  # fmt: skip


def told_twice(rng, language):
    """{"text", "spans"}: two to four people in one or two respects, then all of it again in another order and words.

    The spans are the values of one of the two tellings, so that each can be found in the other by whom it is told of;
    some are the names instead, to be found by the value (or in the question before).
    """
    people = rng.sample(_NAMES, rng.randint(2, 4))
    if language == "zh" and rng.random() < 0.5:  # names in Latin letters, as Chinese text often has them
        people = [Name(person.en, person.en) for person in people]
    entries = entries_of(rng, rng.sample(STORY + COUNTED, rng.randint(1, 2)), people)
    if rng.random() < 0.6:
        entries = _partly_international(rng, entries)
    rng.shuffle(entries)
    words = {entry[0]: _in_words(rng, entry, language) for entry in entries} if rng.random() < 0.3 else {}
    page = _Page(language)
    first = [page.tell(entry, words.get(entry[0]) or _in_words(rng, entry, language)) for entry in entries]
    order = rng.sample(range(len(entries)), len(entries))
    again = {at: _tell_again(rng, page, entries[at], words.get(entries[at][0])) for at in order}
    hidden = first if rng.random() < 0.5 else [again[at] for at in range(len(entries))]
    spans = [span for name, values in hidden for span in ([name] if rng.random() < 0.15 else values)]
    return {"text": page.text, "spans": sorted(map(list, spans))}


def _partly_international(rng, entries):
    """Half of the values by words that both languages share; no two people get the same."""
    spare = {key: rng.sample(words, min(len(words), len(entries))) for key, words in _INTERNATIONAL.items()}
    pairs = []
    for relation, person, value, color in entries:
        if relation in STORY and rng.random() < 0.5:
            word = spare[relation.value].pop()
            value = Name(word, word)
        pairs.append((relation, person, value, color))
    return pairs


class _Page:
    """A text that grows by sentences and knows where in it their names and values stand."""

    def __init__(self, language):
        self.language, self.text = language, ""

    def add(self, sentence):
        """Where it begins."""
        self.text += (SPACE[self.language] if self.text else "") + sentence
        return len(self.text) - len(sentence)

    def tell(self, entry, template):
        """(span of the name, spans of the value and, where it has one, its color)."""
        relation, person, value, color = entry
        words = [word.say(self.language) for word in (person, value, color)]
        sentence = template.format(s=words[0], n=words[0], v=words[1], c=words[2])
        start = self.add(sentence)
        # A value is sought from the end: the name may hold it.
        places = [sentence.index(words[0]), sentence.rindex(words[1]), sentence.rfind(words[2])]
        name, *values = (
            (start + at, start + at + len(word)) for at, word in zip(places, words, strict=True) if at >= 0
        )
        return name, values[: 2 if relation.key == "carry" else 1]


def _tell_again(rng, page, entry, template):
    relation, person, _, _ = entry
    if template and rng.random() < 0.6:
        return page.tell(entry, template)
    form = rng.random()
    if form < 0.25 and relation in STORY:
        return page.tell(entry, rng.choice(RECALLS[relation.key][page.language]))
    if form < 0.6:
        page.add(fill(rng.choice(relation.asks[page.language]), person, page.language))
    return page.tell(entry, _in_words(rng, entry, page.language))


def _in_words(rng, entry, language):
    return with_aside(rng, rng.choice(entry[0].says[language]), language)


def cloze_document(rng, language=None):
    """{"text", "spans"}, one document in one language: what the world's BERTs fill in. Nothing is said in both."""
    language = language or ("en" if rng.random() < 0.5 else "zh")
    if rng.random() < 0.15:
        return {"text": rng.choice((about_one, medley, chance_meeting))(rng, language), "spans": []}
    return told_twice(rng, language)
