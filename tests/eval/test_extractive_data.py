"""Questions from files, columns and the world: both forms, realigning, faults of every sort, kinds."""

import json

import pytest
from toy_reader import squad_file

from rlhf_kit.errors import UserError
from rlhf_kit.eval.extractive.data import nearest, questions_of, read_questions
from rlhf_kit.eval.extractive.questions import KINDS, kind_of

CONTEXT = "小明在臺北，小華在高雄，小明也在高雄。"


def row(name="q", context=CONTEXT, question="誰在臺北？", answers=(("小明", 0),)):
    texts, starts = zip(*answers, strict=True) if answers else ((), ())
    return {
        "id": name, "context": context, "question": question,
        "answers": {"text": list(texts), "answer_start": list(starts)},
    }  # fmt: skip


def test_the_official_file_and_the_hubs_columns_are_the_same_questions(tmp_path):
    path = squad_file(
        tmp_path / "squad.json",
        (CONTEXT, [("1", "誰在臺北？ ", [("小明", 0), ("小明", 12)]), ("2", "小華在哪裡？", [("高雄", 9)])]),
        ("Ann saw Bob.", [("3", "Whom did Ann see?", [("Bob", 8)])]),
    )
    official, counts = read_questions(path, "validation")
    hub = [
        row("1", question="誰在臺北？", answers=(("小明", 0), ("小明", 12))),
        row("2", question="小華在哪裡？", answers=(("高雄", 9),)),
        row("3", "Ann saw Bob.", "Whom did Ann see?", (("Bob", 8),)),
    ]
    (tmp_path / "hub.jsonl").write_text("".join(json.dumps(one) + "\n" for one in hub))
    assert read_questions(str(tmp_path / "hub.jsonl"), "validation")[0] == official
    first, second, third = official
    assert first.question == "誰在臺北？" and first.references == ["小明", "小明"]
    assert first.group == second.group != third.group
    assert [one.kind for one in official] == ["who", "where", "who"]
    assert (counts.questions, counts.passages, counts.references) == (3, 2, 4)
    assert counts.realigned == () and counts.dropped == {}


@pytest.mark.parametrize(
    ("start", "found"),
    [(0, 0), (1, 0), (5, 0), (6, 0), (7, 12), (11, 12), (12, 12), (18, 12), (900, 12), (-1, 0)],
)
def test_a_wrong_start_moves_to_the_nearest_occurrence_the_first_of_two(start, found):
    assert nearest(CONTEXT, "小明", start) == found  # it stands at 0 and 12: 6 is as near to both
    (question,), counts = questions_of("x", [row(answers=(("小明", start),))])
    assert question.answers == (("小明", found),)
    assert counts.realigned == (() if start == found else ("q",))


def test_what_stands_nowhere_has_no_place():
    assert nearest("abc", "d", 1) is None


FAULTS = [
    ("duplicate id", row("good"), "another question has this id"),
    ("answer not in the passage", row("bad", answers=(("小美", 0),)), "'小美' is not in its passage"),
    ("answer not in the passage", row("bad", answers=(("小明", 0), ("小美", 0))), "'小美' is not in its passage"),
    ("empty passage", row("bad", context=" \n"), "passage is empty"),
    ("empty question", row("bad", question=" "), "question is empty"),
    ("empty answer", row("bad", answers=((" ", 0),)), "an answer is empty"),
    ("no answer", row("bad", answers=()), "has no answer"),
    ("wrong form", row("bad") | {"answers": None}, "has no `answers`"),
    ("wrong form", row("bad") | {"answers": "小明"}, "`answers` is the text"),
    ("wrong form", row("bad") | {"answers": {"text": ["小明"], "answer_start": []}}, "whole number `answer_start`"),
    ("wrong form", row("bad") | {"answers": [{"text": "小明"}]}, "whole number `answer_start`"),
    ("wrong form", row("bad", answers=(("小明", True),)), "whole number `answer_start`"),
    ("wrong form", row("bad") | {"context": 3}, "`context` is the number 3"),
    ("wrong form", ["bad"], "is a list; give an object"),
    ("wrong form", {"title": "T", "paragraphs": [{"context": CONTEXT}]}, "`qas` is nothing"),
    ("wrong form", {"title": "T", "paragraphs": None}, "`qas` is nothing"),
    ("wrong form", {"paragraphs": [{"context": CONTEXT, "qas": ["who?"]}]}, "has no `answers`"),
]


@pytest.mark.parametrize(("fault", "bad", "told"), FAULTS)
def test_a_fault_is_an_error_that_names_the_question_or_is_dropped_and_counted(fault, bad, told):
    rows = [row("good"), bad, row("also good")]
    with pytest.raises(UserError, match="1 fault") as error:
        questions_of("my.json", rows)
    name = bad["id"] if isinstance(bad, dict) and "id" in bad else "row 2" if isinstance(bad, list) else "article 2"
    assert told in str(error.value) and name in str(error.value) and "--on_bad_row drop" in str(error.value)
    found, counts = questions_of("my.json", rows, on_bad_row="drop")
    assert [one.id for one in found] == ["good", "also good"] and found[0].answers == (("小明", 0),)
    assert list(counts.dropped) == [fault] and len(counts.dropped[fault]) == 1
    assert name in counts.dropped[fault][0]


def test_questions_without_an_answer_are_taken_where_they_are_asked_for(tmp_path):
    path = squad_file(tmp_path / "v2.json", (CONTEXT, [("1", "誰在臺北？", [("小明", 0)]), ("2", "誰在臺南？", [])]))
    found, counts = read_questions(path, "validation", unanswerable=True)
    assert [one.references for one in found] == [["小明"], []] and (counts.questions, counts.references) == (2, 1)
    hub = [row("1"), row("2", question="誰在臺南？", answers=())]
    assert questions_of("hub", hub, unanswerable=True)[0] == found
    with pytest.raises(UserError, match="has no answer; SQuAD 2.0, .* --scorer squad2"):
        questions_of("hub", hub)
    for mark, answers, told in ((True, (("小明", 0),), "has 1 answers"), (False, (), "has 0 answers")):
        with pytest.raises(UserError, match=f"`is_impossible` is {mark}, and it {told}"):
            questions_of("x", [row(answers=answers) | {"is_impossible": mark}], unanswerable=True)
        assert questions_of("x", [row(answers=answers) | {"is_impossible": None}], unanswerable=True)[0]


def test_cmrcs_own_layout_is_named():
    raw = {"context_id": "T", "context_text": CONTEXT, "qas": [{"query_id": "q", "answers": ["小明"]}], "title": "t"}
    for on_bad_row in ("error", "drop"):
        with pytest.raises(UserError, match="CMRC's own layout.*squad-style-data"):
            questions_of("cmrc2018_trial.json", [raw], on_bad_row)


def test_all_faults_are_told_together_and_nothing_left_is_an_error():
    bad = [row(f"q{at}", answers=(("無", 0),)) for at in range(25)]
    with pytest.raises(UserError, match="25 faults") as error:
        questions_of("x", [row(), *bad])
    assert "'q19'" in str(error.value) and "'q20'" not in str(error.value) and "and 5 more" in str(error.value)
    with pytest.raises(UserError, match="25 faults"):
        questions_of("x", bad, on_bad_row="drop")
    with pytest.raises(UserError, match="no question"):
        questions_of("x", [])
    with pytest.raises(UserError, match="Did you mean 'drop'"):
        questions_of("x", [row()], on_bad_row="dorp")


def test_the_world_and_a_missing_file():
    for kind in ("squad_en", "squad_zh"):
        found, counts = read_questions(f"world:{kind}", "test")
        assert counts.questions == len(found) == 60 and not counts.realigned
        assert all(one.context[start:].startswith(text) for one in found for text, start in one.answers)
    with pytest.raises(UserError, match="does not exist"):
        read_questions("./nowhere.json", "test")


def test_real_files_need_no_mending(shared):
    for path, questions, passages in (("drcd/DRCD_dev.json", 3524, 1000), ("xquad/xquad.zh.json", 1190, 240)):
        _, counts = read_questions(str(shared / path), "validation")
        assert (counts.questions, counts.passages, counts.realigned) == (questions, passages, ())


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Who wrote it?", "who"), ("To whom was it given?", "who"), ("In which city was she born?", "which"),
        ("How many people came?", "how many"), ("How did they come?", "how"), ("Name the whole river.", "other"),
        ("What did he know when he left?", "what"), ("Why?", "why"), ("Where is it?", "where"), ("When?", "when"),
        ("她在什麼時候出生？", "when"), ("他為什麼離開？", "why"), ("她住在哪裡？", "where"), ("哪一年？", "when"),
        ("哪座城市？", "which"), ("有多少人？", "how many"), ("他有幾本書？", "how many"), ("如何製作？", "how"),
        ("她是怎麼來的？", "how"), ("作者是誰？", "who"), ("这是什么？", "what"), ("其單位為？", "other"),
        ("何時何地？", "when"), ("为什么？", "why"), ("在何處？", "where"),
    ],
)  # fmt: skip
def test_a_question_is_of_the_kind_of_its_first_question_word(question, kind):
    assert kind_of(question) == kind
    assert kind in {*KINDS, "other"}
