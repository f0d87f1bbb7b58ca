"""`rlhf-kit eval score`: official files in, one JSON object out; what is wrong with a file named by id."""

import json
import subprocess
import sys

import pytest

from rlhf_kit import cli


def main(argv):
    return cli.main(["eval", "score", *argv])


def coqa_story(name="s1", source="cnn", turns=2, **changes):
    def column(text):
        return [{"input_text": f"{text} {turn}", "turn_id": turn} for turn in range(1, turns + 1)]

    story = {
        "id": name, "source": source, "story": "A barn.", "questions": column("What is"), "answers": column("barn"),
        "additional_answers": {"0": column("the barn"), "1": column("shed"), "2": column("barn")},
    }  # fmt: skip
    return story | changes


def squad_data(questions):
    asked = [
        {"id": name, "question": "?", "answers": [{"text": text, "answer_start": 0} for text in texts]}
        for name, texts in questions.items()
    ]
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "c", "qas": asked}]}]}


@pytest.fixture
def run(tmp_path, capsys):
    """Status, standard output and standard error of the command on two files of these contents."""

    def command(task, references, predictions, *more):
        (tmp_path / "R.json").write_text(json.dumps(references), encoding="utf-8")
        given = ["--human"]
        if predictions is not None:
            text = predictions if isinstance(predictions, str) else json.dumps(predictions)
            (tmp_path / "P.json").write_text(text, encoding="utf-8")
            given = ["--predictions", str(tmp_path / "P.json")]
        status = main([task, "--references", str(tmp_path / "R.json"), *given, *more])
        said = capsys.readouterr()
        return status, said.out, said.err

    command.folder = tmp_path
    return command


def predicted(*turns):
    return [{"id": story, "turn_id": turn, "answer": answer} for story, turn, answer in turns]


def test_coqa_by_domain(run):
    data = {"data": [coqa_story(), coqa_story("s2", "race"), coqa_story("s3", "reddit", turns=1)]}
    status, out, err = run("coqa", data, predicted(("s1", 1, "barn 1"), ("s1", 2, "x"), ("s2", 1, "shed 1")))
    found = json.loads(out)
    # "shed 1": without itself F1 is 1/2 ("1" is shared with the others).
    assert (status, err, found["questions"], found["missing"]) == (0, "", 5, 2)
    assert found["exact_match"] == pytest.approx(100 * (1 + 0 + 0.75) / 5)
    assert found["f1"] == pytest.approx(100 * (1 + 0 + (3 + 0.5) / 4) / 5)
    assert found["by_domain"]["news"] == {"em": 50.0, "f1": 50.0, "turns": 2}
    assert found["by_domain"]["mid-high_school"] == {"em": 37.5, "f1": 43.8, "turns": 2}
    assert found["by_domain"]["reddit"]["turns"] == 1 and found["by_domain"]["overall"]["turns"] == 5


def test_people_are_scored_without_predictions(run):
    status, out, _ = run("coqa", {"data": [coqa_story()]}, None)
    found = json.loads(out)
    assert status == 0 and found["exact_match"] == 75.0 and found["f1"] == pytest.approx(100 * 3.5 / 4)
    status, out, _ = run("drcd", squad_data({"q1": ["臺北", "臺北市"], "q2": ["甲", "甲"]}), None)
    assert json.loads(out)["f1"] == pytest.approx(90.0)
    status, _, err = run("squad", squad_data({"q1": ["a", "b"], "q2": ["a"]}), None)
    assert status == 2 and "1 of 2 questions have only one answer, for example 'q2'" in err


@pytest.mark.parametrize(
    "task, more, em, f1",
    [
        ("squad", [], 0.0, 0.0),
        ("drcd", [], 0.0, 40.0),
        ("drcd", ["--full-width"], 50.0, 50.0),
        ("cmrc", [], 50.0, 50.0),
        ("mlqa", [], 50.0, 50.0),
        ("mlqa", ["--language", "en"], 50.0, 50.0),
    ],
)
def test_each_task_has_its_scorer(run, task, more, em, f1):
    status, out, _ = run(task, squad_data({"q1": ["臺北"], "q2": ["甲"]}), {"q1": "臺北，"}, *more)
    found = json.loads(out)
    assert (status, found["task"], found["questions"], found["missing"]) == (0, task, 2, 1)
    assert (found["exact_match"], found["f1"]) == pytest.approx((em, f1))


@pytest.mark.parametrize(
    "predictions, told",
    [
        (predicted(("s1", 1, "a"), ("s9", 1, "a")), "story 's9', turn 1: is not in the references"),
        (predicted(("s1", 3, "a")), "story 's1', turn 3: is not in the references"),
        (predicted(("s1", 1, "a"), ("s1", 1, "b")), "story 's1', turn 1: appears twice"),
        (predicted(("s8", 1, "a"), ("s9", 1, "a")), "ignore the other predictions with --subset"),
        (predicted(("s1", "1", "a")), "prediction number 1 of 's1': its turn_id is '1'"),
        (predicted(("s1", 1, None)), "story 's1', turn 1: its answer is None"),
        ([{"id": "s1", "answer": "a"}], "prediction number 1 of 's1': has no `turn_id`"),
        ({"s1": "a"}, 'It must be [{"id", "turn_id", "answer"}, ...]'),
        ("[", "is not valid JSON"),
    ],
)
def test_what_is_wrong_with_predictions_of_coqa(run, predictions, told):
    status, out, err = run("coqa", {"data": [coqa_story()]}, predictions)
    assert (status, out) == (2, "") and told in err and "rlhf-kit eval score: " in err


@pytest.mark.parametrize(
    "predictions, told",
    [
        ({"q1": "a", "q9": "b"}, "question 'q9': is not in the references"),
        ('{"q1": "a", "q1": "b"}', "question 'q1': appears twice"),
        ({"q1": ["a"]}, "question 'q1': its answer is ['a'], not a text"),
        ([["q1", "a"]], "{id: answer}"),
    ],
)
def test_what_is_wrong_with_predictions_of_spans(run, predictions, told):
    status, out, err = run("squad", squad_data({"q1": ["a"], "q2": ["b"]}), predictions)
    assert (status, out) == (2, "") and told in err


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"story": None}, "'s1'"),
        ({"questions": None}, "'s1'"),
        ({"answers": [{"input_text": "a", "turn_id": 1}]}, "'s1'"),
        ({"answers": [{"turn_id": 1}, {"input_text": "b", "turn_id": 2}]}, "'s1'"),
        ({"answers": [{"input_text": "a", "turn_id": 2}, {"input_text": "b", "turn_id": 1}]}, "'s1'"),
    ],
)
def test_what_is_wrong_with_coqas_file(run, changes, told):
    status, out, err = run("coqa", {"data": [coqa_story("s0"), coqa_story(**changes)]}, [])
    assert (status, out) == (2, "") and told in err and "'s0'" not in err


def test_what_is_wrong_with_a_squad_file(run):
    data = squad_data({"q1": ["a"], "q2": []})
    data["data"][0]["paragraphs"] += [{"context": "no questions"}, {"qas": [{"id": "q1", "answers": [{"text": "b"}]}]}]
    data["data"].append({"title": "no paragraphs"})
    status, _, err = run("squad", data, {})
    assert status == 2 and "4 faults" in err
    assert "article 1, paragraph 1, question 'q2': has no `answers`" in err
    assert "article 1, paragraph 2: has no `qas`" in err and "article 2, paragraph 1: has no `qas`" in err
    twice = squad_data({"q1": ["a"]})
    twice["data"] *= 2
    assert "question 'q1': appears twice" in run("squad", twice, {})[2]
    assert "no non-empty list `data`" in run("squad", [], {})[2]
    assert "no non-empty list `data`" in run("squad", {"data": []}, {})[2]


def test_coqas_predictions_stand_in_any_order(run):
    data = {"data": [coqa_story(), coqa_story("s2", "race")]}
    turns = [("s1", 1, "barn 1"), ("s1", 2, "shed 2"), ("s2", 1, "x"), ("s2", 2, "the barn 2")]
    status, expected, _ = run("coqa", data, predicted(*turns))
    assert status == 0 and json.loads(expected)["f1"] > 50
    for order in ([3, 0, 2, 1], [1, 0, 3, 2], [3, 2, 1, 0]):
        assert run("coqa", data, predicted(*[turns[at] for at in order])) == (0, expected, "")


def test_a_file_that_holds_more_ids_is_scored_as_a_subset(run):
    data = squad_data({"q1": ["a cat"], "q2": ["b"]})
    given = {"q9": "z", "q1": "cat", "q8": "y"}
    status, out, err = run("squad", data, given)
    assert (status, out) == (2, "") and "2 faults" in err and "'q9': is not in the references" in err
    status, out, _ = run("squad", data, given, "--subset")
    found = json.loads(out)
    assert (status, found["exact_match"], found["missing"], found["left_out"]) == (0, 50.0, 1, 2)
    turns = predicted(("s1", 2, "barn 2"), ("s7", 1, "a"), ("s1", 3, "b"), ("s1", 1, "barn 1"))
    found = json.loads(run("coqa", {"data": [coqa_story()]}, turns, "--subset")[1])
    assert (found["exact_match"], found["missing"], found["left_out"]) == (100.0, 0, 2)
    # what is wrong besides stays wrong, and a file of quite other questions is none of a subset
    assert "'q1': its answer is 3, not a text" in run("squad", data, {"q1": 3, "q9": "z"}, "--subset")[2]
    assert "'q9': appears twice" in run("squad", data, '{"q1": "a", "q9": "b", "q9": "c"}', "--subset")[2]
    status, _, err = run("squad", data, {"q8": "a", "q9": "b"}, "--subset")
    assert status == 2 and "none of its ids is in the references" in err
    assert "--subset filters predictions" in run("squad", data, None, "--subset")[2]


def test_cmrcs_raw_layout_is_read(run):
    asked = [
        {"query_id": "TRIAL_1_QUERY_0", "query_text": "誰？", "answers": ["臺北市", "臺北"]},
        {"query_id": "TRIAL_1_QUERY_1", "query_text": "哪？", "answers": ["2.8%"]},
    ]
    raw = [{"context_id": "TRIAL_1", "context_text": "臺北市。", "qas": asked, "title": "t"}]
    given = {"TRIAL_1_QUERY_0": "臺北", "TRIAL_1_QUERY_1": "2.8%的"}
    flat = squad_data({"TRIAL_1_QUERY_0": ["臺北市", "臺北"], "TRIAL_1_QUERY_1": ["2.8%"]})
    status, out, _ = run("cmrc", raw, given)
    assert status == 0 and json.loads(out)["f1"] == pytest.approx(90) and run("cmrc", flat, given)[1] == out
    assert run("cmrc", {"data": raw}, given)[1] == out
    asked[0]["answers"], asked[1]["query_id"] = None, None
    err = run("cmrc", raw, given)[2]
    assert "2 faults" in err and "'TRIAL_1_QUERY_0': has no `answers`" in err and "a question has no `id`" in err


SQUAD2 = {"q1": ["the red barn", "barn"], "q2": [], "q3": ["shed"], "q4": []}


def test_squad2_by_hand(run):
    given = {"q1": "red barn", "q2": "", "q3": "", "q4": "barn"}
    status, out, _ = run("squad2", squad_data(SQUAD2), given)
    assert status == 0 and json.loads(out) == {
        "task": "squad2", "exact_match": 50.0, "f1": 50.0, "questions": 4, "missing": 0,
        "HasAns_exact": 50.0, "HasAns_f1": 50.0, "HasAns_total": 2,
        "NoAns_exact": 50.0, "NoAns_f1": 50.0, "NoAns_total": 2,
    }  # fmt: skip
    given |= {"q1": "old red barn", "q3": "shed"}
    (na_prob := run.folder / "na.json").write_text(json.dumps({"q4": 0.9, "q3": 0.2, "q2": 0.5, "q1": 0.95}))
    argv = ["--na-prob-file", str(na_prob)]
    found = json.loads(run("squad2", squad_data(SQUAD2), given, *argv)[1])
    # q1: F1 0.8. Nothing said: 2 of 4. Up to q3 (0.2): 3, q2: 3, q4 said: 2, q1: 2.8.
    assert (found["exact_match"], found["f1"], found["na_prob_thresh"]) == (50.0, 70.0, 1.0)
    assert (found["best_exact"], found["best_exact_thresh"]) == (75.0, 0.2)
    assert (found["best_f1"], found["best_f1_thresh"]) == (75.0, 0.2)
    found = json.loads(run("squad2", squad_data(SQUAD2), given, *argv, "--na-prob-thresh", "0.9")[1])
    assert (found["f1"], found["HasAns_f1"], found["NoAns_f1"]) == (50.0, 50.0, 50.0)  # at 0.9, not above
    found = json.loads(run("squad2", squad_data(SQUAD2), given, *argv, "--na-prob-thresh", "0.89")[1])
    assert (found["f1"], found["HasAns_f1"], found["NoAns_f1"]) == (75.0, 50.0, 100.0)


def test_squad2_counts_what_is_missing_and_names_what_is_wrong(run):
    data = squad_data(SQUAD2)
    found = json.loads(run("squad2", data, {"q1": "barn", "q2": ""})[1])
    assert (found["missing"], found["f1"], found["NoAns_f1"]) == (2, 50.0, 50.0)
    na_prob = run.folder / "na.json"
    argv = ["--na-prob-file", str(na_prob)]
    for text, told in (
        ('{"q1": 0.5}', "'q2': has an answer but no probability in this file"),
        ('{"q1": 0.5, "q2": NaN}', "'q2': nan is not a finite number"),
        ('{"q1": 0.5, "q2": true}', "'q2': True is not a finite number"),
        ('{"q1": 0.5, "q2": 1, "q2": 2}', "'q2': appears twice"),
        ('{"q1": 0.5, "q2": 1, "q7": 2}', "'q7': is not in the references"),
        ("[1]", "It must be {id: number}"),
    ):
        na_prob.write_text(text)
        status, out, err = run("squad2", data, {"q1": "barn", "q2": ""}, *argv)
        assert (status, out) == (2, "") and told in err
    na_prob.write_text('{"q7": 9, "q2": 1, "q1": 0.5}')
    assert run("squad2", data, {"q1": "barn", "q2": "", "q7": ""}, *argv, "--subset")[0] == 0
    assert "give that too" in run("squad2", data, {}, "--na-prob-thresh", "0.5")[2]
    assert "--human has no score there" in run("squad2", data, None)[2]
    assert "is an option of squad2" in run("squad", squad_data({"q": ["a"]}), {}, *argv)[2]
    assert "has no `answers`; SQuAD 2.0" in run("squad", data, {})[2]
    data["data"][0]["paragraphs"][0]["qas"][0]["is_impossible"] = True
    assert "'q1': `is_impossible` is True, and it has 2 answers" in run("squad2", data, {})[2]


def test_options_of_another_task_are_refused(run):
    assert "--full_width is an option of drcd" in run("cmrc", squad_data({"q": ["a"]}), {}, "--full-width")[2]
    assert "--language is an option of mlqa" in run("squad", squad_data({"q": ["a"]}), {}, "--language", "en")[2]


def test_a_file_that_is_not_there(capsys, tmp_path):
    assert main(["squad", "--references", str(tmp_path / "none.json"), "--human"]) == 2
    assert "none.json cannot be read: No such file" in capsys.readouterr().err


def test_it_starts_without_torch():
    code = "import sys, rlhf_kit.eval.predictions; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
