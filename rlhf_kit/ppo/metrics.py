"""A rollout in numbers and in words, over all processes; evaluation on held-out prompts."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

import pandas
import torch
from accelerate.utils import gather_object
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_kit import ops
from rlhf_kit.errors import UserError
from rlhf_kit.generation.sampling import Rollout
from rlhf_kit.ppo.experience import Experience
from rlhf_kit.storage import RUN, Folder
from rlhf_kit.terminal.console import Console

console = Console(stderr=True)
LOGGED = {  # what `losses` calls it -> its name in the logs
    "policy": "loss/policy",
    "value": "loss/value",
    "entropy": "loss/entropy",
    "ptx": "loss/ptx",
    "ratio": "policy/ratio",
    "clip_fraction": "policy/clip_fraction",
    "approx_kl": "policy/approx_kl",
    "value_clip_fraction": "value/clip_fraction",
}
EVALUATED = ("reward", "reward_std", "kl", "kl_per_token", "entropy")
RENAMED = {"completions/length": "length", "completions/terminated": "terminated"}


class Stopwatch:
    """Seconds of the named pieces of a rollout, and since its start."""

    def __init__(self):
        self.start()

    def start(self) -> None:
        self.began, self.pieces = time.perf_counter(), Counter()

    @contextmanager
    def piece(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.pieces[name] += time.perf_counter() - began

    def read(self) -> dict[str, float]:
        """By name, "collect" for all of it."""
        return {**self.pieces, "collect": time.perf_counter() - self.began}


def timed(name: str) -> Callable[[Callable], Callable]:
    """A trainer's method whose seconds its `stopwatch` counts as `name`."""

    def decorate(method: Callable) -> Callable:
        @wraps(method)
        def run(self, *args, **kwargs):
            with self.stopwatch.piece(name):
                return method(self, *args, **kwargs)

        return run

    return decorate


class Averages:
    """Means over all processes; `reduce` sums a tensor over them."""

    def __init__(self, reduce: Callable[[Tensor], Tensor], device: torch.device):
        self.reduce, self.device = reduce, device

    def mean(self, x: Tensor) -> float:
        """Over completions that have a number (not NaN). (B,) -> float."""
        x = x.to(self.device).float()
        total, count = self.reduce(torch.stack([x.nansum(), (~x.isnan()).sum().float()])).tolist()
        return total / count if count else float("nan")

    def std(self, x: Tensor) -> float:
        """Population standard deviation. (B,) -> float."""
        return max(self.mean(x * x) - self.mean(x) ** 2, 0.0) ** 0.5

    def token_means(self, xs: dict[str, Tensor], mask: Tensor) -> dict[str, float]:
        """Over the chosen tokens, all of them at one go. (B, R) each."""
        sums = torch.stack([mask.sum().float(), *(ops.masked_sum(x, mask) for x in xs.values())])
        count, *totals = self.reduce(sums).tolist()
        return {name: total / max(count, 1) for name, total in zip(xs, totals, strict=True)}


class Tracked:
    """What happens between two logs, number by number; a log is their mean, over the time and over all processes."""

    def __init__(self, reduce: Callable[[Tensor], Tensor], processes: int):
        self.reduce, self.processes = reduce, processes
        self.values: dict[str, list[Tensor | float]] = defaultdict(list)

    def add(self, name: str, value: Tensor | float) -> None:
        """Every process adds the same names in the same order; a tensor is not waited for."""
        self.values[name].append(value.detach() if isinstance(value, Tensor) else value)

    def means(self) -> dict[str, float]:
        """The mean of each number, and a fresh start. Every process takes part."""
        if not self.values:
            return {}
        means = torch.stack([torch.tensor(values).mean() for values in self.values.values()])
        device = next((x.device for values in self.values.values() for x in values if isinstance(x, Tensor)), None)
        totals = self.reduce(means.to(device)).tolist()
        names = list(self.values)
        self.values.clear()
        return {name: total / self.processes for name, total in zip(names, totals, strict=True)}


def rollout_metrics(
    experience: Experience,
    parts: dict[str, Tensor],
    ref_logprobs: Tensor,
    entropy: Tensor,
    averages: Averages,
) -> dict[str, float]:
    """The numbers that docs/metrics.md explains, of one rollout before its update."""
    rollout, logprobs = experience.rollout, experience.logprobs
    mask, values, returns = rollout.completion_mask, experience.values, experience.returns
    kl = ops.kl_k1(logprobs, ref_logprobs)
    per_token = {
        "kl_per_token": kl,
        "kl_k3_per_token": ops.kl_k3(logprobs, ref_logprobs),
        "entropy": entropy,
        "value/mean": values,
        "value/return": returns,
        "residual": (returns - values) ** 2,
        "square": returns**2,
    }
    means = averages.token_means(per_token, mask)
    ended, cut_off = (
        experience.scores.masked_fill(~rows, math.nan) for rows in (rollout.terminated, ~rollout.terminated)
    )
    gap = averages.mean(ended) - averages.mean(cut_off)
    residual, spread = means.pop("residual"), means.pop("square") - means["value/return"] ** 2
    return {
        "reward": averages.mean(experience.scores),
        "reward_std": averages.std(experience.scores),
        **{f"rewards/{name}": averages.mean(part) for name, part in parts.items()},
        "kl": averages.mean((kl * mask).sum(1)),
        **means,
        "value/explained_variance": 1 - residual / max(spread, 1e-8),
        "completions/length": averages.mean(rollout.completion_lengths),
        "completions/terminated": averages.mean(rollout.terminated),
        **({} if math.isnan(gap) else {"completions/ended_score_gap": gap}),  # all or none ended
    }


def sampler_metrics(experience: Experience, cap: float | None, averages: Averages) -> dict[str, float]:
    """How far the sampler's log-probs are from those that the policy trains with, where these were read anew."""
    sampled, mask = experience.rollout.logprobs, experience.rollout.completion_mask
    if sampled is None or sampled is experience.logprobs:
        return {}
    gaps = experience.logprobs - sampled
    per_token = {"rollout/logprob_gap": gaps.abs()}
    if cap is not None:
        per_token["rollout/importance_clipped"] = (gaps > math.log(cap)).float()
    return averages.token_means(per_token, mask)


# --- completions ----------------------------------------------------------------------------------------------------


def completions_table(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict], rollout: Rollout, scores: Tensor, parts: dict[str, Tensor]
) -> list[dict]:
    """One row per completion, those of all processes: prompt (its last turn), completion, score, each reward's own."""
    columns = {"score": scores.tolist()} | {f"rewards/{name}": part.tolist() for name, part in parts.items()}
    prompts = [row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"] for row in rows]
    table = {"prompt": prompts, "completion": rollout.texts(tokenizer)} | columns
    return gather_object([dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)])


def write_completions(rows: list[dict], folder: str | Path, step: int, name: str = "completions") -> Path:
    """`folder`/completions/completions_STEP.parquet, the names of TRL's GRPO."""
    content = pandas.DataFrame([{"step": step, **row} for row in rows]).to_parquet()
    return Folder(Path(folder), RUN).write(f"completions/{name}_{step:05d}.parquet", content)


def show_completions(rows: list[dict], title: str, count: int) -> None:
    table = Table(title=title, title_justify="left", show_lines=True)
    for title in ("prompt 題目", "completion 回答", "score 分數"):
        table.add_column(title, overflow="fold")
    for row in rows[:count]:
        table.add_row(row["prompt"], row["completion"] or "(nothing 空白)", f"{row['score']:.2f}")
    console.print(table)


# --- evaluation -----------------------------------------------------------------------------------------------------


def share_of(size: int, processes: int, index: int) -> range:
    """Places of `size` prompts that fall to process `index`, as even as can be.

    >>> [list(share_of(5, 2, index)) for index in range(2)]
    [[0, 1], [2, 3, 4]]
    """
    return range(size * index // processes, size * (index + 1) // processes)


def check_share(prompts: list[dict], processes: int) -> None:
    """Raises UserError where there are no prompts, or fewer than processes."""
    if not prompts:
        raise UserError("There is nothing to evaluate on; give an eval_dataset.")
    if len(prompts) < processes:
        raise UserError(f"eval_dataset has {len(prompts)} prompts for {processes} processes; each needs one at least.")


class Evaluation:
    """Samples prompts with the run's seed: the same draws whatever the number of processes."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.reference_scores: Tensor | None = None  # of the trainer's own prompts: the reference does not change

    def __call__(self, prompts: list[dict], cached: bool) -> dict[str, float]:
        """Reward, KL, length and more of the policy's completions, and how often they beat the reference's.

        `win_rate` is the share of prompts where the completion scores above that of the reference; a tie is half.

        Args:
            cached: these are the trainer's own prompts, on which the reference is asked but once.
        """
        trainer = self.trainer
        check_share(prompts, trainer.args.world_size)
        share = share_of(len(prompts), trainer.args.world_size, trainer.args.process_index)
        rows = prompts[share.start : share.stop]
        experience, metrics = trainer.collect(rows, self._generator(share.start), training=False)
        if not cached or self.reference_scores is None:
            reference = self.scores_of_reference(rows, share.start)
            self.reference_scores = reference if cached else self.reference_scores
        else:
            reference = self.reference_scores
        gap = (experience.scores - reference).sign()  # 1 won, -1 lost
        report = {name: metrics[name] for name in EVALUATED}
        report |= {name: value for name, value in metrics.items() if name.startswith("rewards/")}
        report |= {ours: metrics[name] for name, ours in RENAMED.items()}
        return report | {"win_rate": trainer.averages.mean((gap + 1) / 2)}

    @torch.no_grad()
    def scores_of_reference(self, rows: list[dict], first: int = 0) -> Tensor:
        """Scores of what the reference says to `rows`, the first of which is prompt number `first`. (B,)."""
        rollout = self.trainer.sample(rows, self._generator(first), reference=True)
        return self.trainer.shape_scores(self.trainer.score(rows, rollout)[0], rollout, training=False)

    def _generator(self, first: int) -> torch.Generator:
        """Draws for the prompts from number `first` on: those before it have had theirs."""
        args = self.trainer.args
        generator = torch.Generator().manual_seed(args.seed)
        torch.rand(first, args.max_completion_length, generator=generator)
        return generator
