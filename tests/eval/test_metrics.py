"""The metrics of the `evaluate` library: loaded by class, without the hub, with the scorers' own figures."""

import re

import evaluate
import numpy as np
import pytest

from rlhf_kit.errors import UserError
from rlhf_kit.eval import metrics, scorers
from rlhf_kit.eval.rouge import rouge

PREDICTIONS = ["the red barn", "台北", "聖經，最高"]
REFERENCES = [["a barn", "red barn", "shed"], ["台北市"], ["聖經"]]


@pytest.mark.parametrize("name", ["coqa", "squad", "drcd", "cmrc", "mlqa"])
def test_a_metric_is_the_mean_of_its_scorer(name):
    metric = getattr(metrics, name.title())()
    scores = [getattr(scorers, name)(*pair) for pair in zip(PREDICTIONS, REFERENCES, strict=True)]
    expected = {
        "exact_match": 100 * sum(score.em for score in scores) / 3,
        "f1": 100 * sum(score.f1 for score in scores) / 3,
    }
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES) == pytest.approx(expected)
    for at in range(3):
        metric.add(prediction=PREDICTIONS[at], references=REFERENCES[at]) if at else metric.add_batch(
            predictions=PREDICTIONS[:1], references=REFERENCES[:1]
        )
    assert metric.compute() == pytest.approx(expected)
    assert metric.name == name


def test_squad2_reports_what_has_answers_and_what_has_none():
    metric = metrics.Squad2()
    one = {"predictions": ["", "red barn", "x"], "references": [[], ["the barn", "red barn"], []]}
    found = metric.compute(**one)
    assert (found["exact_match"], found["HasAns_f1"], found["NoAns_f1"]) == pytest.approx((200 / 3, 100, 50))
    found = metric.compute(**one, no_answer_probability=[0.9, 0.1, 0.7])
    assert (found["best_f1"], found["best_f1_thresh"]) == (100.0, 0.1)
    assert metric.compute(**one, no_answer_probability=[0.9, 0.1, 0.7], no_answer_threshold=0.5)["f1"] == 100.0
    with pytest.raises(UserError, match="3 predictions and 1 no_answer_probability"):
        metric.compute(**one, no_answer_probability=[0.9])


def test_options_reach_the_scorer():
    one = {"predictions": ["聖經，"], "references": [["聖經"]]}
    assert metrics.Drcd().compute(**one)["exact_match"] == 0.0
    assert metrics.Drcd().compute(**one, full_width=True)["exact_match"] == 100.0
    one = {"predictions": ["the cat"], "references": [["cat"]]}
    assert metrics.Mlqa().compute(**one, language="en") == {"exact_match": 100.0, "f1": 100.0}


def test_rouge_has_one_reference_each():
    predictions, references = ["the cats sat", "貓在睡覺"], ["a cat sat", "黑貓睡覺"]
    expected = [rouge(*pair) for pair in zip(predictions, references, strict=True)]
    found = metrics.Rouge().compute(predictions=predictions, references=references)
    assert found == pytest.approx({name: 50 * sum(score[name] for score in expected) for name in expected[0]})
    assert metrics.Rouge().compute(predictions=["cats"], references=["cat"], stemmed=False)["rouge1"] == 0.0


SOUND = {"drcd": (["x"], [["x"]]), "exactmatch": (["x"], [["x"]]), "rouge": (["x"], ["x"])}


@pytest.mark.parametrize("name", SOUND)
def test_nothing_to_score_is_told_and_the_metric_goes_on(name):
    kinds = {"drcd": metrics.Drcd, "exactmatch": metrics.ExactMatch, "rouge": metrics.Rouge}
    metric, (predictions, references) = kinds[name](), SOUND[name]
    for given, told in (
        ({}, "nothing was given to score"),
        ({"predictions": [], "references": []}, "no predictions, so there is no mean"),
        ({"predictions": ["x", "y"], "references": references}, "2 predictions and 1 references"),
        ({"predictions": predictions}, "references must be a list, one entry per question, not nothing"),
        ({"references": references}, "predictions must be a list, one entry per question, not nothing"),
        (
            {"predictions": "x", "references": "x"},
            "predictions must be a list, one entry per question, not the text 'x'",
        ),
        ({"predictions": {"a": "x"}, "references": references}, "not an object"),
        (
            {"predictions": ["x", None], "references": references * 2},
            "question 1: its prediction must be text, not no",
        ),
        ({"predictions": predictions, "references": [None]}, "question 0: its references? must be .*, not nothing"),
        ({"predictions": predictions, "references": [1]}, "question 0: its references? must be .*, not the number 1"),
    ):
        with pytest.raises(UserError, match=told):
            metric.compute(**given)
    with pytest.raises(UserError, match="prediction must be text"):
        metric.add(prediction=None, references=references[0])
    metric.add(prediction="x", references=references[0])
    assert 100 in metric.compute().values()
    with pytest.raises(UserError, match="nothing was given to score"):
        metric.compute()
    arrays = {"predictions": np.array(predictions), "references": np.array(references)}
    assert 100 in metric.compute(**arrays).values()


@pytest.mark.parametrize(
    ("references", "told"),
    [
        ([[], ["x"]], "question 0: it has no reference; give at least one"),
        (["x", ["x"]], "question 0: its references must be a list of texts, not the text 'x'"),
        (
            [["x"], ["", None]],
            "1 of 2 questions cannot be scored.\n  question 1: a reference must be text, not nothing",
        ),
    ],
)
def test_references_that_are_none_are_named(references, told):
    with pytest.raises(UserError, match=re.escape(told)):
        metrics.Cmrc().compute(predictions=["x", "x"], references=references)


def test_rouge_names_references_without_a_unit():
    with pytest.raises(UserError, match="question 1: its reference has no letter or digit that ROUGE counts: '😀…'"):
        metrics.Rouge().compute(predictions=["a", "😀…"], references=["a", "😀…"])
    same = ["आज हवामान छान आहे", "Привет, мир", "ＡＢ１２"]
    found = metrics.Rouge().compute(predictions=same, references=same)
    assert found["rouge1"] == found["rougeL"] == found["rougeLsum"] == pytest.approx(100)


def test_metrics_combine():
    both = evaluate.combine([metrics.Squad(), metrics.ExactMatch()])
    found = both.compute(predictions=["a cat", "dog"], references=[["cat"], ["dog"]])
    assert found == {"squad_exact_match": 100.0, "f1": 100.0, "exact_match_exact_match": 50.0}
