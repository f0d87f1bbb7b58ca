"""Passages with questions: CoQA-style conversations and SQuAD-style rows, answers with exact character offsets."""

from .names import VALUES, VISITORS
from .relations import SPACE, STORY, fill, with_aside
from .stories import entries_of
from .tasks import FACTS_IN, assistant, user


def _passage(rng, split, language):
    """(text, [(relation, subject, value words, sentence, its start)]): two visitors, made up, and two facts."""
    visitors = rng.sample(VISITORS, 2)
    facts = [
        (relation, visitor, rng.choice(VALUES[relation.value]), rng.choice(VALUES["color"]))
        for visitor in visitors
        for relation in rng.sample(STORY, 2)
    ]
    facts += [(f.relation, f.subject, f.value, None) for f in rng.sample(FACTS_IN[split], 2)]
    rng.shuffle(facts)
    return _told(rng, facts, language)


def _told(rng, told, language, asides=False):
    text, entries = "", []
    for relation, subject, value, color in told:
        template = rng.choice(relation.says[language])
        template = with_aside(rng, template, language) if asides else template
        sentence = fill(template, subject, language, value, color)
        text += SPACE[language] if text else ""
        words = value.say(language)
        if relation.key == "carry":
            words = f"{color.say(language)}{' ' if language == 'en' else '的'}{words}"
        entries.append((relation, subject, words, sentence, len(text)))
        text += sentence
    return text, entries


def _crowd(rng, split, language):
    """As `_passage`: three visitors, each told of in the same two respects, so that it takes the name to answer."""
    entries = entries_of(rng, rng.sample(STORY, 2), rng.sample(VISITORS, 3))
    rng.shuffle(entries)
    return _told(rng, entries, language, asides=True)


def _start(entry):
    """Where the answer begins in the passage: its last place in the sentence ('the' in 'Theo' comes before)."""
    _, subject, words, sentence, start = entry
    return start + sentence.rindex(words)


def conversation(rng, split, number):
    """One CoQA-style conversation of 3 to 5 turns; a turn about the visitor of the turn before says he or she."""
    language = "en" if rng.random() < 0.55 else "zh"
    text, entries = _passage(rng, split, language)
    chosen = rng.sample(entries, rng.randint(3, 5))
    chosen.sort(key=lambda e: e[1].en)
    questions, answers, before = [], [], None
    for turn, entry in enumerate(chosen, start=1):
        relation, subject, words, sentence, start = entry
        same = subject == before and relation.follows[language]
        template = rng.choice(relation.follows[language] if same else relation.asks[language])
        questions.append({"input_text": fill(template, subject, language), "turn_id": turn})
        answers.append({
            "input_text": words, "turn_id": turn,
            "span_text": sentence, "span_start": start, "span_end": start + len(sentence),
        })  # fmt: skip
        before = subject
    return {
        "id": f"world-{split}-{number}", "source": "world", "story": text, "questions": questions, "answers": answers,
        "language": language,
    }  # fmt: skip


def dialogue(rng, split, number):
    """A conversation as a demonstration: the first question follows the passage, answers are as short as there.

    The layout of `rlhf-kit eval coqa --apply_chat_template`.
    """
    row = conversation(rng, split, number)
    messages = []
    for question, answer in zip(row["questions"], row["answers"], strict=True):
        messages += [user(question["input_text"]), assistant(answer["input_text"])]
    messages[0] = user(f"{row['story']}\n\n{messages[0]['content']}")
    return {"messages": messages}


def _squad(rng, split, number, language, passage=_passage, kind=""):
    text, entries = passage(rng, split, language)
    entry = rng.choice(entries)
    relation, subject, words, _, _ = entry
    return {
        "id": f"world-{kind}{language}-{split}-{number}", "title": "World", "context": text,
        "question": fill(rng.choice(relation.asks[language]), subject, language),
        "answers": {"text": [words], "answer_start": [_start(entry)]},
    }  # fmt: skip


def squad_en(rng, split, number):
    return _squad(rng, split, number, "en")


def squad_zh(rng, split, number):
    return _squad(rng, split, number, "zh")


def crowd_en(rng, split, number):
    return _squad(rng, split, number, "en", _crowd, "crowd-")


def crowd_zh(rng, split, number):
    return _squad(rng, split, number, "zh", _crowd, "crowd-")
