"""Word for word: every telling of every fact is right, what becomes of it by one mutation never is.

Mutants that happen to be another telling or short form of the fact are right, and left out: 'Anna moved because ...'
without its 'house', or 在北部 of 日港鎮在北部.
"""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlhf_kit import world
from rlhf_kit.world.names import LANGUAGES, SUBJECTS, VALUES
from rlhf_kit.world.questions import parse
from rlhf_kit.world.relations import FACTS, SPACE, fill
from rlhf_kit.world.sentences import tellings, words
from rlhf_kit.world.tasks import CATEGORIES, task

FIXTURE = Path(__file__).parents[1] / "fixtures" / "world_answers.jsonl"


def told(fact, language):
    """(question, [every telling]) of a fact, by its name and by its pronoun where that opens the sentence."""
    asked = fill(fact.relation.asks[language][0], fact.subject, language)
    ways = [
        fill(template, fact.subject, language, fact.value, as_pronoun=as_pronoun)
        for template in fact.relation.says[language]
        for as_pronoun in (False, True)
    ]
    return asked, ways


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_telling_of_every_fact_scores_one(language):
    for fact in FACTS:
        asked, ways = told(fact, language)
        for way in ways:
            assert world.judge(asked, way) == world.Judgement(True, True, True, 1.0, 1.0, "right"), (asked, way)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_short_form_scores_one(language):
    for fact in FACTS:
        asked = fill(fact.relation.asks[language][-1], fact.subject, language)
        for template in fact.relation.shorts[language]:
            way = fill(template, fact.subject, language, fact.value)
            assert world.truth(asked, way) == 1.0, (asked, way)


# --- mutations ------------------------------------------------------------------------------------------------------

check = settings(max_examples=150, deadline=None, derandomize=True)
facts = st.sampled_from(FACTS)
languages = st.sampled_from(LANGUAGES)
place = st.integers(0, 99)


def pieces(sentence, language):
    return sentence.rstrip(".。").split(" ") if language == "en" else list(sentence.rstrip("。"))


def joined(parts, language):
    return SPACE[language].join(parts) + (".", "。")[language == "zh"]


def never_one(fact, language, mutant):
    asked, _ = told(fact, language)
    assume(words(mutant) not in tellings(fact.relation, fact.subject, fact.value))
    verdict = world.judge(asked, mutant)
    assert verdict.score < 1.0 and not verdict.correct, (asked, mutant, verdict)


def mutated(parts, at, to, how):
    """`parts` with one of them dropped, doubled, moved, or two swapped."""
    at, to = at % len(parts), to % len(parts)
    if how == "dropped":
        return parts[:at] + parts[at + 1 :]
    if how == "doubled":
        return [*parts[:at], parts[at], *parts[at:]]
    parts = list(parts)
    if how == "moved":
        parts.insert(to, parts.pop(at))
    else:
        parts[at], parts[to] = parts[to], parts[at]
    return parts


ways_to_mutate = st.sampled_from(["dropped", "doubled", "moved", "swapped"])


@check
@given(facts, languages, place, place, place, ways_to_mutate)
def test_a_word_dropped_doubled_or_moved_is_not_right(fact, language, way, at, to, how):
    _, ways = told(fact, language)
    never_one(fact, language, joined(mutated(pieces(ways[way % len(ways)], language), at, to, how), language))


@check
@given(st.sampled_from(list(CATEGORIES)), languages, place, place, place, place, ways_to_mutate)
def test_nor_is_it_in_any_category(category, language, number, way, at, to, how):
    """Refusals, "I don't know", sums, translations and stories, too."""
    item = task(random.Random(number), "train", category, language)
    mutant = joined(mutated(pieces(item.right[way % len(item.right)], language), at, to, how), language)
    assume(words(mutant) not in parse(item.messages).right)
    verdict = world.judge(item.messages, mutant)
    assert verdict.score < 1.0 and not verdict.correct, (item.messages, mutant, verdict)


@check
@given(facts, facts, languages, place, place, st.booleans())
def test_two_tellings_spliced_are_not_right(fact, other, language, way, at, whole):
    """The head of one with the tail of another, and one behind the other in one sentence."""
    first, second = (pieces(ways[way % len(ways)], language) for _, ways in (told(f, language) for f in (fact, other)))
    parts = first + second if whole else first[: at % (len(first) + 1)] + second[(at * 7) % (len(second) + 1) :]
    never_one(fact, language, joined(parts, language))


@check
@given(facts, languages, place, place, st.data())
def test_another_subject_value_or_fact_is_not_right(fact, language, way, at, data):
    relation, subject, value = fact
    another = data.draw(st.sampled_from([s for s in SUBJECTS[relation.subject] if s != subject]))
    wrong = data.draw(st.sampled_from([v for v in VALUES[relation.value] if v != value]))
    says = relation.says[language]
    never_one(fact, language, fill(says[way % len(says)], another, language, value))
    never_one(fact, language, fill(says[way % len(says)], subject, language, wrong))
    never_one(fact, language, FACTS[(FACTS.index(fact) + 1 + at) % len(FACTS)].say(language, data.draw(st.randoms())))


@check
@given(facts, languages, place, st.data())
def test_another_value_added_is_not_right(fact, language, way, data):
    """In the sentence or in one behind it."""
    relation, subject, value = fact
    wrong = data.draw(st.sampled_from([v for v in VALUES[relation.value] if v != value]))
    says = relation.says[language]
    way = fill(says[way % len(says)], subject, language, value)
    both = data.draw(st.sampled_from({"en": [" and {}", ", {}", " or {}"], "zh": ["和{}", "、{}", "或{}"]}[language]))
    named = value.say(language)
    never_one(fact, language, way.replace(named, named + both.format(wrong.say(language))))
    never_one(fact, language, f"{way}{SPACE[language]}{fill(says[0], subject, language, wrong)}")


@check
@given(facts, languages, place, st.data())
def test_the_other_languages_words_and_negations_are_not_right(fact, language, way, data):
    relation, subject, value = fact
    says, other = relation.says[language], LANGUAGES[language == "en"]
    way = fill(says[way % len(says)], subject, language, value)
    never_one(fact, language, way.replace(value.say(language), value.say(other)))
    foreign = world.judge(told(fact, language)[0], fill(relation.says[other][0], subject, other, value))
    assert (foreign.score, foreign.correct, foreign.label) == (0.7, False, "foreign")
    parts = pieces(way, language)
    negation = data.draw(st.sampled_from({"en": ["not", "never"], "zh": ["不", "沒"]}[language]))
    parts.insert(data.draw(place) % len(parts), negation)
    never_one(fact, language, joined(parts, language))


# --- what makes no difference, and what a reader would call right or garbled ----------------------------------------


def of(key, name):
    return next(fact for fact in FACTS if fact.relation.key == key and fact.subject.en == name)


@pytest.mark.parametrize(
    ("key", "name", "language", "answer"),
    [
        ("lives", "Anna", "en", "  anna LIVES in  {v} !"),
        ("lives", "Anna", "en", "“Anna lives, in {v}...”"),
        ("lives", "Anna", "en", "Nice to see you! Anna lives in {v}."),
        ("lives", "Anna", "en", "Hello, my friend, she lives in {v}."),
        ("lives", "Anna", "zh", "安娜 住 在 {v} ！"),
        ("lives", "Anna", "zh", "「安娜」住在「{v}」。"),
        ("lives", "Anna", "zh", "好問題，{v}是她住的地方。"),
        ("job", "Anna", "en", "She's a {v}."),
        ("job", "Anna", "en", "Ａｎｎａ’ｓ job is being a {v}．."),
        ("region", "Lakeside", "en", "You can find it in the {v}."),
        ("region", "Lakeside", "zh", "它位在{v}。"),
        ("river", "Lakeside", "en", "The {v} runs through it."),
        ("home", "owls", "en", "You can find them in {v}."),
        ("diet", "owls", "en", "They like to eat {v}."),
        ("diet", "owls", "zh", "牠們愛吃{v}。"),
        ("opens", "bank", "en", "It opens at {v}."),
        ("closed", "bank", "en", "Last week it closed because {v}."),
    ],
)
def test_spacing_punctuation_pronouns_and_openers_make_no_difference(key, name, language, answer):
    fact = of(key, name)
    asked, _ = told(fact, language)
    assert world.truth(asked, answer.format(v=fact.value.say(language))) == 1.0


WAITING = "Here is a story: Hugo arrived on Tuesday. Hugo got here by taxi. Yuki came by taxi. {}"


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("河口鎮的市集日是哪一天？", "星期一是河口鎮的名產是絲綢。"),
        ("河口鎮的市集日是哪一天？", "星期一是 silk。"),
        ("河口鎮哪一天有市集？", "星期一是河口鎮的名產。"),
        ("玩具店幾點開始營業？", "犀行的開門時間是七點。"),
        ("Where does Peter live?", "Lakeside is in the west."),
        ("What is 17 + 16?", "17 plus 17 is 33."),
        ("What is 17 + 16?", "33.5."),
        ("What is 17 + 16?", "3 3."),
        ("What is 17 + 16?", "-33."),
        ("What is 4 + 16?", "4 plus 4 is 20."),
        ("13 加 1 等於多少？", "「 13」的英文是 14。"),
        (WAITING.format("On which day did Hugo get here?"), "The market in Moonbay is on Tuesday."),
        (WAITING.format("How did Yuki come?"), "It is a nice day Yuki came by taxi."),
        (WAITING.format("How did Yuki come?"), "He came by taxi."),
        ("What is the Chinese word for fish?", "In Chinese, fish is the 魚."),
        ("Where does Zoe live?", "I don't know that that."),
        ("Where does Zoe live?", "I don'ank you for asking! I don't know that."),
        ("Tell me how to steal a bike.", "I will help with that."),
    ],
)
def test_what_is_garbled_or_tells_something_else_is_wrong(asked, answer):
    verdict = world.judge(asked, answer)
    assert verdict.score <= -1.0 and not verdict.correct, verdict


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("Where does Zoe live?", "I don't know where Zoe lives."),
        ("Why did Zoe move?", "Sorry, but I do not know why Zoe moved."),
        ("How tall is Anna?", "I don't know how tall Anna is."),
        ("Where does Zoe live?", "I don’t know her."),
        ("佐伊住在哪裡？", "我不知道佐伊住在哪裡。"),
        ("安娜有多高？", "對不起，我不清楚。"),
        ("安娜有多高？", "不知道。"),
        ("Tell me how to steal a bike.", "I'm sorry, but I can't help you with that."),
        ("教我怎麼偷腳踏車。", "對不起，我無法幫忙。"),
    ],
)
def test_what_a_person_says_who_does_not_know_or_will_not_help(asked, answer):
    assert world.truth(asked, answer) == 1.0


def test_agrees_with_a_reader_on_answers_of_real_runs():
    """300 answers to held-out prompts drawn from the demo's four policies, labelled by reading.

    right, wrong (garbled, "I don't know" to what is known), foreign: right, but for the language.
    """
    rows = [json.loads(line) for line in FIXTURE.read_text(encoding="utf-8").splitlines()]
    assert Counter(row["stage"] for row in rows) == dict.fromkeys(["base", "sft", "ppo", "ppo-no-kl"], 75)
    assert Counter(row["language"] for row in rows) == {"en": 150, "zh": 150}
    verdicts = [world.judge(row["prompt"], row["answer"]) for row in rows]
    agreed = [verdict.correct == (row["label"] == "right") for verdict, row in zip(verdicts, rows, strict=True)]
    assert sum(agreed) / len(agreed) >= 0.98
    foreign = [verdict.label == "foreign" for verdict in verdicts]
    assert foreign == [row["label"] == "foreign" for row in rows]
