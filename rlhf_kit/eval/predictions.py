"""`rlhf-kit eval score`: a file of predictions against a dataset's own file, by the dataset's official scorer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rlhf_kit.data import coqa
from rlhf_kit.data.references import Key, read_na_probs, read_predictions, read_squad
from rlhf_kit.errors import UserError
from rlhf_kit.eval import scorers
from rlhf_kit.eval.scorers import Score
from rlhf_kit.options import option
from rlhf_kit.terminal import say


@dataclass
class PredictionsOptions:
    task: Literal["coqa", "squad", "squad2", "drcd", "cmrc", "mlqa"] | None = option(
        None,
        "The official scorer: coqa (by domain), squad (XQuAD too), squad2 (HasAns, NoAns), drcd, cmrc, mlqa. 評分方式",
        positional="TASK",
        required=True,
    )
    references: Path | None = option(None, "The dataset's JSON. 標準答案", required=True)
    predictions: Path | None = option(None, "JSON in the official format. 模型的答案", group="answers")
    human: bool = option(False, "Score a person's answers against the others'. 人類的分數", group="answers")
    subset: bool = option(False, "Ignore predictions whose id is not in the references. 略過多餘的 id")
    na_prob_file: Path | None = option(
        None, "squad2: {id: probability of no answer}, for the best thresholds. 無答案的機率"
    )
    na_prob_thresh: float | None = option(
        None, "squad2: above this probability a question counts as unanswered. Default: 1.0. 無答案門檻"
    )
    full_width: bool = option(False, "drcd: drop 《》？，。、；： too. 也去掉全形標點")
    language: Literal["en", "zh"] | None = option(None, "mlqa: language of the answers. Default: zh. 答案的語言")


def score_coqa(references: Path, predictions: Path | None, subset: bool = False) -> dict[str, Any]:
    """What the command prints, with the official report by domain. Raises UserError."""
    stories = coqa.read_file(references)
    answers = {(story.id, turn): replies for story in stories for turn, replies in enumerate(story.answers, 1)}
    if predictions is None:
        each, counts = _human(answers, references, scorers.coqa_human), {"missing": 0}
    else:
        replies, counts = _read(predictions, answers, subset)
        each = _each(answers, replies, scorers.coqa)
    sources = {story.id: story.source for story in stories}
    by_domain = scorers.coqa_report((sources[story], score) for (story, _), score in each.items())
    return {"task": "coqa", **_means(each), **counts, "by_domain": by_domain}


def score_squad2(
    references: Path,
    predictions: Path,
    subset: bool = False,
    na_prob_file: Path | None = None,
    na_prob_thresh: float = 1.0,
) -> dict[str, Any]:
    """What the command prints, with the official report: HasAns, NoAns and, with `na_prob_file`, the best thresholds.

    Raises UserError.
    """
    answers = read_squad(references, unanswerable=True)
    replies, counts = _read(predictions, answers, subset)
    na_probs = {} if na_prob_file is None else read_na_probs(na_prob_file, list(answers), list(replies), subset)
    each = _each(answers, replies, scorers.squad2)
    # Of equal probabilities the official script takes the one that its file has first.
    order = [*na_probs, *(key for key in answers if key not in na_probs)]
    questions = [
        scorers.Answered(
            each[key], bool(answers[key]), replies.get(key, ""), na_probs.get(key) if key in replies else None
        )
        for key in order
    ]
    report = scorers.squad2_report(questions, na_prob_thresh)
    means = {"exact_match": report.pop("exact"), "f1": report.pop("f1"), "questions": report.pop("total")}
    threshold = {} if na_prob_file is None else {"na_prob_thresh": na_prob_thresh}
    return {"task": "squad2", **threshold, **means, **counts, **report}


def score_spans(
    task: str, scorer: scorers.Scorer, references: Path, predictions: Path | None, subset: bool, **options: Any
) -> dict[str, Any]:
    answers = read_squad(references)
    scorer = partial(scorer, **options)
    if predictions is None:
        each, counts = _human(answers, references, partial(scorers.human, scorer)), {"missing": 0}
    else:
        replies, counts = _read(predictions, answers, subset)
        each = _each(answers, replies, scorer)
    return {"task": task, **options, **_means(each), **counts}


def _read(predictions: Path, answers: Mapping[Key, Sequence[str]], subset: bool) -> tuple[dict[Key, str], dict]:
    """The answers given, and how many are missing and, of a subset, left out."""
    replies, others = read_predictions(predictions, list(answers), subset)
    return replies, {"missing": len(answers) - len(replies)} | ({"left_out": others} if subset else {})


def _each(answers: Mapping[Key, Sequence[str]], given: Mapping[Key, str], scorer: scorers.Scorer) -> dict[Key, Score]:
    """The score of each question, one without a prediction counting 0."""
    nothing = Score(0.0, 0.0)
    return {key: scorer(given[key], texts) if key in given else nothing for key, texts in answers.items()}


def _human(
    answers: Mapping[Key, Sequence[str]], references: Path, human: Callable[[Sequence[str]], Score]
) -> dict[Key, Score]:
    single = [key for key, given in answers.items() if len(given) < 2]
    if single:
        fault = f"{len(single)} of {len(answers)} questions have only one answer, for example {single[0]!r}"
        raise UserError(f"{references}: {fault}; --human compares a person's answer with another's.")
    return {key: human(given) for key, given in answers.items()}


def _means(each: Mapping[Key, Score]) -> dict[str, Any]:
    """Percentages over all questions."""
    em, f1 = (100 * sum(column) / len(each) for column in zip(*each.values(), strict=True))
    return {"exact_match": em, "f1": f1, "questions": len(each)}


def _check(options: PredictionsOptions) -> None:
    """Raises UserError for an option of another task."""
    if options.full_width and options.task != "drcd":
        raise UserError(f"--full_width is an option of drcd; {options.task} has its own punctuation.")
    if options.language and options.task != "mlqa":
        raise UserError(f"--language is an option of mlqa; {options.task} has one language.")
    if options.subset and options.human:
        raise UserError("--subset filters predictions, and --human reads none.")
    if options.task == "squad2" and options.human:
        raise UserError(
            "SQuAD 2.0's files do not record who found a question unanswerable, so --human has no score there."
        )
    if options.na_prob_file and options.task != "squad2":
        raise UserError(f"--na_prob_file is an option of squad2; {options.task} has an answer to every question.")
    if options.na_prob_thresh is not None and not options.na_prob_file:
        raise UserError("--na_prob_thresh is a threshold for the numbers of --na_prob_file; give that too.")


def score(options: PredictionsOptions) -> dict[str, Any]:
    """What the command prints. Raises UserError."""
    _check(options)
    files = options.references, options.predictions, options.subset
    if options.task == "coqa":
        return score_coqa(*files)
    if options.task == "squad2":
        thresh = 1.0 if options.na_prob_thresh is None else options.na_prob_thresh
        return score_squad2(*files, options.na_prob_file, thresh)
    own = {"drcd": {"full_width": options.full_width}, "mlqa": {"language": options.language or "zh"}}
    return score_spans(options.task, getattr(scorers, options.task), *files, **own.get(options.task, {}))


def run(options: PredictionsOptions) -> None:
    """`rlhf-kit eval score`. Raises UserError."""
    say(json.dumps(score(options), ensure_ascii=False, indent=2))
