"""The metrics of the `evaluate` library: loaded by class, without the hub, with the scorers' own figures."""

import evaluate
import pytest

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


def test_metrics_combine():
    both = evaluate.combine([metrics.Squad(), metrics.ExactMatch()])
    found = both.compute(predictions=["a cat", "dog"], references=[["cat"], ["dog"]])
    assert found == {"squad_exact_match": 100.0, "f1": 100.0, "exact_match_exact_match": 50.0}
