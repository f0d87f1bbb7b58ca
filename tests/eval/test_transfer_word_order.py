"""Passages in another word order: what moves, what stays, and where the answer is afterwards."""

from collections import Counter

import pytest
from toy_reader import world_questions

from rlhf_kit.eval.extractive.data import Question
from rlhf_kit.eval.transfer.word_order import reorder


def question(context, answer, at=None, **more):
    return Question("q", context, "?", ((answer, context.index(answer) if at is None else at),), "g", **more)


def test_reversed_sentence_by_sentence_marks_and_spaces_in_place():
    found = reorder(question("Nora came by red bus. Rita, 3.5 years, left!", "red bus"), "reversed")
    assert found.context == "red bus by came Nora. left, years 3.5, Rita!"
    assert found.answers == (("red bus", 0),)


def test_a_chinese_character_is_a_word_and_the_answer_one_unit():
    found = reorder(question("小明帶紅傘。他走了。", "紅傘"), "reversed")
    assert found.context == "紅傘帶明小。了走他。" and found.answers == (("紅傘", 0),)


def test_an_answer_over_a_sentence_mark_or_in_a_word_moves_whole():
    found = reorder(question("He saw St. Louis today.", "St. Louis"), "reversed")
    assert found.context == "today St. Louis saw He." and found.answers == (("St. Louis", 6),)
    found = reorder(question("a 12km run", "12"), "reversed")  # its word comes along
    assert found.context == "run 12km a" and found.answers == (("12", 4),)


def test_of_equal_words_the_answer_is_the_one_that_was_meant():
    found = reorder(question("red hat, blue red", "red", at=14), "reversed")
    assert found.context == "red blue, hat red" and found.answers == (("red", 0),)


def test_only_the_first_answer_is_kept_and_the_passage_is_another():
    two = Question("q", "a b c", "?", (("b", 2), ("c", 4)), "g")
    found = reorder(two, "reversed")
    assert found.answers == (("b", 2),) and found.group != two.group and found.question == two.question


@pytest.mark.parametrize("kind", ["squad_en", "squad_zh"])
def test_random_order_keeps_characters_and_the_answer_and_is_drawn_anew(kind):
    asked = world_questions(12, kind)
    for one in asked:
        found = reorder(one, "random")
        (text, start), (wanted, _) = found.answers[0], one.answers[0]
        assert text == wanted == found.context[start : start + len(text)]
        assert Counter(found.context) == Counter(one.context) and len(found.context) == len(one.context)
        assert reorder(one, "random") == found
    assert sum(reorder(one, "random").context != one.context for one in asked) == len(asked)
    assert any(reorder(one, "random", seed=1) != reorder(one, "random") for one in asked)


def test_another_order_is_refused():
    with pytest.raises(ValueError, match="'sov'"):
        reorder(question("a b", "a"), "sov")
