"""`rlhf-kit eval score`: official files in, one JSON object out; what is wrong with a file named by id."""

import json
import subprocess
import sys

import pytest

from rlhf_kit.recipes import evaluate


def main(argv):
    return evaluate.main(["score", *argv])


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
    assert status == 2 and "1 of 2 questions have one answer only, such as 'q2'" in err


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
        (predicted(("s1", 1, "a"), ("s1", 1, "b")), "story 's1', turn 1: stands there twice"),
        (predicted(("s1", 2, "a"), ("s1", 1, "b")), "story 's1', turn 1: stands after turn 2"),
        (predicted(("s1", "1", "a")), "prediction number 1 of 's1': its turn_id is '1'"),
        (predicted(("s1", 1, None)), "story 's1', turn 1: its answer is None"),
        ([{"id": "s1", "answer": "a"}], "prediction number 1 of 's1': has no `turn_id`"),
        ({"s1": "a"}, 'It must be [{"id", "turn_id", "answer"}, ...]'),
        ("[", "is not a JSON file"),
    ],
)
def test_what_is_wrong_with_predictions_of_coqa(run, predictions, told):
    status, out, err = run("coqa", {"data": [coqa_story()]}, predictions)
    assert (status, out) == (2, "") and told in err and "rlhf-kit eval score: " in err


@pytest.mark.parametrize(
    "predictions, told",
    [
        ({"q1": "a", "q9": "b"}, "question 'q9': is not in the references"),
        ('{"q1": "a", "q1": "b"}', "question 'q1': stands there twice"),
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
    assert "question 'q1': stands there twice" in run("squad", twice, {})[2]
    assert "no list `data`" in run("squad", [], {})[2]
    assert "no list `data`" in run("squad", {"data": []}, {})[2]


def test_options_of_another_task_are_refused(run):
    assert "--full-width is an option of drcd" in run("cmrc", squad_data({"q": ["a"]}), {}, "--full-width")[2]
    assert "--language is an option of mlqa" in run("squad", squad_data({"q": ["a"]}), {}, "--language", "en")[2]


def test_a_file_that_is_not_there(capsys, tmp_path):
    assert main(["squad", "--references", str(tmp_path / "none.json"), "--human"]) == 2
    assert "none.json cannot be read: No such file" in capsys.readouterr().err


def test_it_starts_without_torch():
    code = "import sys, rlhf_kit.eval.score_predictions; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
