"""The scorers as metrics of the `evaluate` library, by class and without the hub.

    from rlhf_kit.eval.metrics import Drcd
    Drcd().compute(predictions=["臺北市"], references=[["臺北市", "臺北"]])  # {"exact_match": 100.0, "f1": 100.0}

A question has a list of references, for ROUGE one reference. All figures are percentages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import datasets
import evaluate

from rlhf_kit.eval import scorers
from rlhf_kit.eval.rouge import rouge


class AnswerMetric(evaluate.Metric):
    """Mean over questions of a scorer of `scorers`; `compute` hands its further arguments on to it."""

    scorer: ClassVar[Callable[..., scorers.Score]]

    def _info(self) -> evaluate.MetricInfo:
        return _info(self, datasets.Sequence(datasets.Value("string")))

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]], **options) -> dict[str, float]:
        scores = [type(self).scorer(*pair, **options) for pair in zip(predictions, references, strict=True)]
        return {
            "exact_match": _percentage(score.em for score in scores),
            "f1": _percentage(score.f1 for score in scores),
        }


class Coqa(AnswerMetric):
    """CoQA's em and F1 over turns, leaving one reference out in turn."""

    scorer = staticmethod(scorers.coqa)


class Squad(AnswerMetric):
    """SQuAD v1.1's em and F1 over words."""

    scorer = staticmethod(scorers.squad)


class Drcd(AnswerMetric):
    """DRCD's em and F1 over characters; `full_width=True` leaves full-width punctuation out too."""

    scorer = staticmethod(scorers.drcd)


class Cmrc(AnswerMetric):
    """CMRC 2018's em and F1 of the longest run shared."""

    scorer = staticmethod(scorers.cmrc)


class Mlqa(AnswerMetric):
    """MLQA's em and F1; `language="en"` or "zh" [zh]."""

    scorer = staticmethod(scorers.mlqa)


class ExactMatch(evaluate.Metric):
    """Share of predictions that are one of their references as it stands."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(self, datasets.Sequence(datasets.Value("string")))

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        return {"exact_match": _percentage(scorers.exact_match(*pair) for pair in pairs)}


class Rouge(evaluate.Metric):
    """Mean F1 of ROUGE-1, 2, L and Lsum; `stemmed=False` leaves English words as they are."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(self, datasets.Value("string"))

    def _compute(self, predictions: Sequence[str], references: Sequence[str], **options) -> dict[str, float]:
        scores = [rouge(*pair, **options) for pair in zip(predictions, references, strict=True)]
        return {name: _percentage(score[name] for score in scores) for name in scores[0]}


def _info(metric: evaluate.Metric, references: Any) -> evaluate.MetricInfo:
    features: Mapping[str, Any] = {"predictions": datasets.Value("string"), "references": references}
    told = type(metric).__doc__
    return evaluate.MetricInfo(
        description=told, citation="", inputs_description=told, features=datasets.Features(features)
    )


def _percentage(values) -> float:
    values = list(values)
    return 100 * sum(values) / len(values)
