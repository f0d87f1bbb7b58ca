"""`rlhf-kit eval score`: a file of predictions against a dataset's own file, by the dataset's official scorer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_kit.errors import UserError
from rlhf_kit.eval import scorers
from rlhf_kit.eval.references import Key, read_coqa, read_predictions, read_squad
from rlhf_kit.eval.scorers import Score
from rlhf_kit.terminal import say


def score_coqa(references: Path, predictions: Path | None) -> dict[str, Any]:
    """What the command prints, with the official report by domain. Raises UserError."""
    stories = read_coqa(references)
    answers = {(story.id, turn): given for story in stories for turn, given in enumerate(story.answers, 1)}
    scores = _scores(answers, predictions, references, scorers.coqa, scorers.coqa_human)
    sources = {story.id: story.source for story in stories}
    by_domain = scorers.coqa_report((sources[story], score) for (story, _), score in scores.pop("each").items())
    return {"task": "coqa", **scores, "by_domain": by_domain}


def score_spans(
    task: str, scorer: scorers.Scorer, references: Path, predictions: Path | None, **options: Any
) -> dict[str, Any]:
    answers = read_squad(references)
    scorer = partial(scorer, **options)
    scores = _scores(answers, predictions, references, scorer, partial(scorers.human, scorer))
    del scores["each"]
    return {"task": task, **options, **scores}


def _scores(
    answers: Mapping[Key, Sequence[str]],
    predictions: Path | None,
    references: Path,
    scorer: scorers.Scorer,
    human: Callable[[Sequence[str]], Score],
) -> dict[str, Any]:
    """Percentages over all questions, one without a prediction counting 0, and the score of each question."""
    if predictions is None:
        single = [key for key, given in answers.items() if len(given) < 2]
        if single:
            told = f"{len(single)} of {len(answers)} questions have one answer only, such as {single[0]!r}"
            raise UserError(f"{references}: {told}; --human compares a person's answer with another's.")
        each = {key: human(given) for key, given in answers.items()}
        missing = 0
    else:
        given = read_predictions(predictions, list(answers))
        nothing = Score(0.0, 0.0)
        each = {key: scorer(given[key], texts) if key in given else nothing for key, texts in answers.items()}
        missing = len(answers) - len(given)
    em, f1 = (100 * sum(column) / len(each) for column in zip(*each.values(), strict=True))
    return {"exact_match": em, "f1": f1, "questions": len(each), "missing": missing, "each": each}


def score(options: argparse.Namespace) -> dict[str, Any]:
    """What the command prints. Raises UserError."""
    files = options.references, options.predictions
    if options.full_width and options.task != "drcd":
        raise UserError(f"--full-width is an option of drcd; {options.task} has its own punctuation.")
    if options.language and options.task != "mlqa":
        raise UserError(f"--language is an option of mlqa; {options.task} has one language.")
    if options.task == "coqa":
        return score_coqa(*files)
    own = {"drcd": {"full_width": options.full_width}, "mlqa": {"language": options.language or "zh"}}
    return score_spans(options.task, getattr(scorers, options.task), *files, **own.get(options.task, {}))


def run(options: argparse.Namespace) -> None:
    """`rlhf-kit eval score` with parsed options (`file_options.score`). Raises UserError."""
    say(json.dumps(score(options), ensure_ascii=False, indent=2))
