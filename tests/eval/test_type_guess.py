"""Guessing by type: candidates of constructed passages, counted by hand; the right one is among them in every row."""

import pytest

from rlhf_kit import world
from rlhf_kit.eval import scorers
from rlhf_kit.eval.type_guess import asked, guess_score, type_guess
from rlhf_kit.world.names import PEOPLE, SUBJECTS, VISITORS
from rlhf_kit.world.relations import RELATIONS, STORY, fill

ENGLISH = (
    "Nora came by bus. The tea house opens at eight. Stonebridge is known for its silk. Rita traveled by taxi. "
    "Rita has a red hat. Nora carries a blue hat. The Blue River runs through Redwood. Anna lives in Sunport."
)
CHINESE = (
    "圖書館八點開門。由紀帶著紅色的書。歐瑪有藍色的傘。歐瑪有藍色的箱子。"
    "貓頭鷹住在樹上。安娜養了一隻貓。大衛養了一隻金魚。"
)


@pytest.mark.parametrize(
    "question, candidates",
    [
        ("How did Rita come?", ["bus", "taxi"]),
        ("How did she come?", ["bus", "taxi"]),
        ("What does Nora carry?", ["red hat", "blue hat"]),
        ("What is Stonebridge known for?", ["silk"]),  # the tea of the tea house is no product
        ("Which river runs through Redwood?", ["Blue River"]),
        ("Where does Anna live?", ["Stonebridge", "Redwood", "Sunport"]),
        ("When did Nora arrive?", []),
        ("Who wrote Hamlet?", []),
    ],
)
def test_english_candidates(question, candidates):
    assert type_guess(ENGLISH, question, "en") == candidates


@pytest.mark.parametrize(
    "question, candidates",
    [
        ("她帶著什麼？", ["紅色的書", "藍色的箱子"]),  # an umbrella is 雨傘 in the world
        ("那她養什麼寵物？", ["貓", "金魚"]),  # the owl is no cat
        ("圖書館幾點開門？", ["八點"]),
        ("How did Rita come?", []),
    ],
)
def test_chinese_candidates(question, candidates):
    assert type_guess(CHINESE, question, "zh") == candidates


def test_a_value_told_twice_is_one_candidate():
    assert type_guess("Nora came by bus. Rita came by bus. Omar came by boat.", "How did he come?", "en") == [
        "bus", "boat",
    ]  # fmt: skip


def test_the_mean_of_the_guesses_by_hand():
    # Of "red hat", "blue hat" and "white key" for "blue hat": F1 1/2, 1 and 0.
    found = guess_score(scorers.coqa, ["red hat", "blue hat", "white key"], ["blue hat"])
    assert found == pytest.approx((1 / 3, 1 / 2))
    with pytest.raises(ValueError, match="nothing to guess"):
        guess_score(scorers.coqa, [], ["blue hat"])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_question_of_the_world_is_known_for_its_own(language):
    people = SUBJECTS | {"person": PEOPLE, "visitor": VISITORS}
    for relation in (*RELATIONS, *STORY):
        for form in (*relation.asks[language], *relation.follows[language]):
            for subject in people[relation.subject]:
                assert asked(fill(form, subject, language), language) is relation


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_right_answer_is_among_the_candidates_of_every_row(split):
    rows = [
        (row["story"], turn["input_text"], answer["input_text"], row["language"])
        for row in world.rows("conversations", split)
        for turn, answer in zip(row["questions"], row["answers"], strict=True)
    ]
    for kind, language in (("squad_en", "en"), ("squad_zh", "zh")):
        for row in world.rows(kind, split):
            rows.append((row["context"], row["question"], row["answers"]["text"][0], language))
    assert all(answer in type_guess(text, question, language) for text, question, answer, language in rows)
