"""Tasks of lm-evaluation-harness beside our own, through its Python API. An extra of the package: `lm-eval`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.chat import start_ids
from rlhf_kit.errors import UserError
from rlhf_kit.eval.icl.page import Point

# Its results hold "metric,filter"; the first of these that a task has is drawn.
METRICS = ("acc", "exact_match", "em", "f1")


def check_installed() -> None:
    """Raises UserError where lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "--lm_eval needs lm-evaluation-harness, which is not installed. Install it by "
            "`pip install 'rlhf_kit[lm-eval]'`, or leave --lm_eval out."
        )


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    shots: Sequence[int],
    limit: int | None,
    seed: int,
) -> list[Point]:
    """Each task with each number of shots, as the harness defines task, prompt and metric: in percent.

    Raises:
        UserError: for a task it cannot find or load (most are data sets of the hub), or without a metric of METRICS.
    """
    lm_eval = importlib.import_module("lm_eval")
    model_of = importlib.import_module("lm_eval.models.huggingface").HFLM
    begins = bool(start_ids(tokenizer))  # which the harness leaves out unless it is told
    wrapped = model_of(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=8, add_bos_token=begins)
    points = []
    for count in shots:
        try:
            output = lm_eval.simple_evaluate(
                model=wrapped, tasks=list(tasks), num_fewshot=count, limit=limit, bootstrap_iters=0, log_samples=False,
                random_seed=seed, fewshot_random_seed=seed,
            )  # fmt: skip
        except Exception as error:  # its tasks raise whatever their files and the hub's client do
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"--lm_eval {' '.join(tasks)}: lm-evaluation-harness says: {reason}") from error
        for task, scores in output["results"].items():
            points.append(Point(f"lm-eval {task}", count, _percent(task, scores), None, None))
    return points


def _percent(task: str, scores: dict) -> float:
    for metric in METRICS:
        for name, value in scores.items():
            if name.partition(",")[0] == metric and isinstance(value, int | float):
                return 100 * value
    had = ", ".join(name for name in scores if "stderr" not in name)
    raise UserError(
        f"--lm_eval {task} has none of {', '.join(METRICS)}; it has {had}. Run it with the harness itself."
    )
