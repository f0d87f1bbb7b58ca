"""The scorers as metrics of the `evaluate` library, by class and without the hub.

    from rlhf_kit.eval.metrics import Drcd
    Drcd().compute(predictions=["臺北市"], references=[["臺北市", "臺北"]])  # {"exact_match": 100.0, "f1": 100.0}

A question has a list of references, for ROUGE one reference. All figures are percentages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, ClassVar

import datasets
import evaluate

from rlhf_kit.data.faults import describe
from rlhf_kit.data.formats import SHOWN
from rlhf_kit.errors import UserError
from rlhf_kit.eval import scorers
from rlhf_kit.eval.rouge import UNCOUNTED, rouge, units


class _Metric(evaluate.Metric):
    """A mean over pairs of a prediction and its references, in percent; what cannot be one is refused by name."""

    references: ClassVar[Any] = datasets.Sequence(datasets.Value("string"))

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("string"), "references": self.references}
        description = type(self).__doc__
        return evaluate.MetricInfo(
            description=description, citation="", inputs_description=description, features=datasets.Features(features)
        )

    def compute(self, *, predictions=None, references=None, **options) -> dict[str, float] | None:
        """The figures of what is given here, or was added before. Raises UserError where it is nothing or no pairs."""
        if predictions is None and references is None and self.writer is None:
            raise UserError(f"{self.name}: nothing was given to score. Give predictions and references, or add them.")
        return super().compute(predictions=predictions, references=references, **options)

    def add_batch(self, *, predictions=None, references=None, **more) -> None:
        """Add questions to be scored by `compute`. Raises UserError for what cannot be."""
        self._check(predictions, references)
        super().add_batch(predictions=predictions, references=references, **more)

    def add(self, *, prediction=None, references=None, **more) -> None:
        """Add a question to be scored by `compute`. Raises UserError for what cannot be."""
        self._check([prediction], [references])
        super().add(prediction=prediction, references=references, **more)

    def _check(self, predictions: Any, references: Any) -> None:
        for name, column in (("predictions", predictions), ("references", references)):
            if not _is_column(column):
                raise UserError(f"{self.name}: {name} must be a list, one entry per question, not {describe(column)}.")
        if len(predictions) != len(references):
            raise UserError(
                f"{self.name}: {len(predictions)} predictions and {len(references)} references; give one of each "
                "per question."
            )
        faults = [
            (at, fault)
            for at, pair in enumerate(zip(predictions, references, strict=True))
            if (fault := self._fault(*pair)) is not None
        ]
        if faults:
            lines = [f"  question {at}: {fault}" for at, fault in faults[:SHOWN]]
            lines += [f"  ... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
            raise UserError(
                "\n".join([f"{self.name}: {len(faults)} of {len(predictions)} questions cannot be scored.", *lines])
            )

    def _fault(self, prediction: Any, references: Any) -> str | None:
        """What is wrong with a pair; None is nothing."""
        if not isinstance(prediction, str):
            return f"its prediction must be text, not {describe(prediction)}"
        if not _is_column(references):
            return f"its references must be a list of texts, not {describe(references)}"
        if not len(references):
            return "it has no reference; give at least one"
        wrong = [describe(each) for each in references if not isinstance(each, str)]
        return f"a reference must be text, not {wrong[0]}" if wrong else None

    def _mean(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        if not scores:
            raise UserError(f"{self.name}: no predictions, so there is no mean. Give at least one.")
        return {name: 100 * sum(score[name] for score in scores) / len(scores) for name in scores[0]}


def _is_column(value: Any) -> bool:
    """A list, a tuple, an array or a column of a table."""
    return isinstance(value, Sized) and not isinstance(value, str | bytes | Mapping)


class AnswerMetric(_Metric):
    """Mean over questions of a scorer of `scorers`; `compute` hands its further arguments on to it."""

    scorer: ClassVar[Callable[..., scorers.Score]]

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]], **options) -> dict[str, float]:
        scores = [type(self).scorer(*pair, **options) for pair in zip(predictions, references, strict=True)]
        return self._mean([{"exact_match": score.em, "f1": score.f1} for score in scores])


class Coqa(AnswerMetric):
    """CoQA's em and F1 over turns, leaving one reference out in turn."""

    scorer = staticmethod(scorers.coqa)


class Squad(AnswerMetric):
    """SQuAD v1.1's em and F1 over words."""

    scorer = staticmethod(scorers.squad)


class Squad2(AnswerMetric):
    """SQuAD 2.0's official report: em and F1 in all and of questions with answers (HasAns_) and without (NoAns_).

    No references: there is no answer, and "" is the right prediction. `compute` takes `no_answer_probability`, a list
    of one number a question, for the best thresholds, and `no_answer_threshold` [1.0], above which "" counts as said.
    """

    scorer = staticmethod(scorers.squad2)

    def _compute(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]],
        no_answer_probability: Sequence[float] | None = None, no_answer_threshold: float = 1.0,
    ) -> dict[str, float]:  # fmt: skip
        if not len(predictions):
            return self._mean([])
        probabilities = [None] * len(predictions) if no_answer_probability is None else list(no_answer_probability)
        if len(probabilities) != len(predictions):
            raise UserError(
                f"{self.name}: {len(predictions)} predictions and {len(probabilities)} no_answer_probability."
            )
        questions = [
            scorers.Answered(self.scorer(prediction, texts), bool(len(texts)), prediction, na_prob)
            for prediction, texts, na_prob in zip(predictions, references, probabilities, strict=True)
        ]
        report = scorers.squad2_report(questions, no_answer_threshold)
        return {"exact_match": report.pop("exact"), **report}

    def _fault(self, prediction: Any, references: Any) -> str | None:
        empty = _is_column(references) and not len(references)
        return super()._fault(prediction, [""] if empty else references)


class Drcd(AnswerMetric):
    """DRCD's em and F1 over characters; `full_width=True` leaves full-width punctuation out too."""

    scorer = staticmethod(scorers.drcd)


class Cmrc(AnswerMetric):
    """CMRC 2018's em and F1 of the longest run shared."""

    scorer = staticmethod(scorers.cmrc)


class Mlqa(AnswerMetric):
    """MLQA's em and F1; `language="en"` or "zh" [zh]."""

    scorer = staticmethod(scorers.mlqa)


class ExactMatch(_Metric):
    """Share of predictions that are one of their references as it stands."""

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        return self._mean([{"exact_match": scorers.exact_match(*pair)} for pair in pairs])


class Rouge(_Metric):
    """Mean F1 of ROUGE-1, 2, L and Lsum; `stemmed=False` leaves English words as they are."""

    references = datasets.Value("string")

    def _compute(self, predictions: Sequence[str], references: Sequence[str], **options) -> dict[str, float]:
        return self._mean([rouge(*pair, **options) for pair in zip(predictions, references, strict=True)])

    def _fault(self, prediction: Any, references: Any) -> str | None:
        if not isinstance(references, str):
            return f"its reference must be one text, not {describe(references)}"
        return super()._fault(prediction, [references]) or (
            None if units(references) else f"its reference {UNCOUNTED}: {references[:40]!r}"
        )
