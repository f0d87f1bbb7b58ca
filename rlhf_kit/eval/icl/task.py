"""`rlhf-kit eval icl`: learning from examples in the prompt, with zero, one and few of them, over model sizes.

As GPT-3 was measured (Brown et al. 2020, section 2.4), but for what is said here: the shots are drawn for each item
by a hash of (task, item, K, seed); answers are written greedily (the paper: four beams); shots that the model's
context has no room for are left out, the first ones, and counted. Multiple choice takes the likeliest choice, by the
log-likelihood per token (`acc`), in total (`acc_total`) and in total less that after the cue alone
(`acc_unconditional`). With `--apply_chat_template` prompts are put in turns (`icl_tasks.messages`) and everything else
is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from rlhf_kit import world
from rlhf_kit.errors import UserError
from rlhf_kit.eval import results, task
from rlhf_kit.eval.icl import lm_eval_tasks as harness
from rlhf_kit.eval.icl.page import Curve, curve_csv, curve_page, points, show
from rlhf_kit.eval.icl.prompts import Asked, Prompts
from rlhf_kit.eval.icl.tasks import Example, Task, draw_shots, tasks
from rlhf_kit.eval.items import Item, Results, percentages
from rlhf_kit.eval.task import ModelsArguments
from rlhf_kit.generation.decoding import Decoding, continuations
from rlhf_kit.generation.generators import layout, load_generator
from rlhf_kit.generation.likelihood import Likelihood, Request, likelihoods
from rlhf_kit.hashes import text_hash
from rlhf_kit.intervals import Figure, mean
from rlhf_kit.models.checkpoints import load_policy
from rlhf_kit.options import option
from rlhf_kit.pages.shell import REPORT
from rlhf_kit.processes import processes
from rlhf_kit.terminal.console import Console

CURVE = "curve.csv"


@dataclass
class ICLArguments(ModelsArguments):
    tasks: list[str] = option([], "arithmetic, unscramble, world, or tasks of these by name. 任務")
    shots: list[int] = option([0, 1, 8], "Examples in the prompt. 範例數")
    apply_chat_template: bool = option(False, "Ask in turns, as SFT teaches, not in plain text. 以對話格式提問")
    lm_eval: list[str] = option(
        [], "Also run these tasks of lm-evaluation-harness (extra: lm-eval). 一併評測的 lm-eval 任務"
    )
    limit: int | None = option(None, "Only the first N items of each task: a trial, not a result. 只評前 N 題")


class ICL(task.Task):
    """Each task with each number of shots; a group of the results is "TASK/K-shot".

    `scores`: the unweighted mean over tasks for each K, "acc_K_shot"; with one task and one K just its own scores.
    """

    name, protocol, version = "icl", "gpt3-greedy", 2  # 2: choices as they are tokenized behind their prompt
    Arguments = ICLArguments
    data = "made here"
    written = (REPORT, CURVE, "a folder for each model")

    def read(self) -> list[Task]:
        return tasks(self.options.tasks)

    def limited(self, rows: Sequence[Task]) -> Sequence[Task]:
        return rows  # `limit` is of the items of each

    @property
    def shots(self) -> list[int]:
        return sorted(set(self.options.shots))

    def check(self) -> None:
        options = self.options
        if not self.shots:
            raise UserError("--shots is an empty list; give at least one number of examples, such as 0.")
        if not options.tasks and not options.lm_eval:
            raise UserError("Nothing to measure: give --tasks, such as `--tasks world arithmetic`, or --lm_eval.")
        if options.lm_eval:
            harness.check_installed()
            if options.apply_chat_template:
                raise UserError("--lm_eval tasks run in plain text only; leave --apply_chat_template out.")
        for exercise in self.rows:
            draw_shots(exercise, 0, self.shots[-1], options.seed)
        if self.folder is not None:
            results.of(self.folder, self.name).check("--output_dir", (CURVE, REPORT))

    def of_models(self) -> list[task.Task]:
        parts = super().of_models()
        return parts if self.rows else []  # lm-evaluation-harness keeps no items

    def prepare(self) -> list[str]:
        options = self.options
        self.layout = layout(self.tokenizer, options.apply_chat_template)
        self.prompts = Prompts(self.tokenizer, self.context, options.apply_chat_template)
        self.items = {
            f"{exercise.name}/{wanted}-shot/{number}": (exercise, number, wanted)
            for exercise in self.rows
            for wanted in self.shots
            for number in range(len(exercise.examples))[: options.limit]
        }
        for exercise in self.rows:  # all prompts would take minutes: the longest question of each
            examples = exercise.examples[: options.limit]
            longest = max(range(len(examples)), key=lambda number: len(examples[number].prompt))
            self._prompt(f"{exercise.name}/{self.shots[-1]}-shot/{longest}")
        return list(self.items)

    def _prompt(self, name: str) -> Asked:
        return self.prompts.ask(name, *self.items[name], self.options.seed)

    def settings(self) -> dict[str, Any]:
        names = [exercise.name for exercise in self.rows]
        return {**self.layout, "tasks": names, "shots": self.shots, **super().settings()}

    def ask(self, model: PreTrainedModel, ids: Sequence[str]) -> Iterator[Item]:
        for exercise in self.rows:
            items = [self._prompt(name) for name in ids if self.items[name][0] is exercise]
            answer = _choose if exercise.examples[0].choices else _write
            yield from answer(model, self.prompts, exercise, items, self.options.max_batch_tokens)

    def figures(self, items: Sequence[Item], clusters: NDArray) -> dict[str, Figure]:
        """Percentages of a group; of all items the unweighted mean over tasks for each number of shots."""
        groups = list(dict.fromkeys(item.group for item in items))
        if len(groups) == 1:
            return percentages(items, clusters)
        of_shots: dict[str, list[Figure]] = {}
        for group in groups:
            values = [100 * item.scores["acc"] if item.group == group else np.nan for item in items]
            of_shots.setdefault(group.rpartition("/")[2], []).append(mean(values, clusters))
        return {f"acc_{shots.replace('-', '_')}": _mean_of(parts) for shots, parts in of_shots.items()}

    @cached_property
    def parameters(self) -> int:
        return load_policy(self.model, tokenizer=self.tokenizer, device_map="meta").num_parameters()

    def details(self, items: Sequence[Item]) -> dict[str, Any]:
        counts: dict[str, list[int]] = {}
        for item in items:
            counts.setdefault(item.group, []).append(item.details["shots"])
        shown = {group: round(sum(shots) / len(shots), 2) for group, shots in counts.items()}
        return {"parameters": self.parameters, "shots_shown": shown}

    def report(self, measured: Mapping[str, Results]) -> None:
        """The curve of all models: its table, its page and its numbers."""
        options = self.options
        curves = [Curve(name, of_model.details["parameters"], points(of_model)) for name, of_model in measured.items()]
        if options.lm_eval:
            curves = self._with_harness({curve.model: curve for curve in curves})
        show(curves, Console(), options.apply_chat_template)
        if self.folder is not None:
            results.write(self.folder / CURVE, curve_csv(curves), self.name)
            page = curve_page(curves, self.rows, options.limit, options.apply_chat_template)
            results.write(self.folder / REPORT, page, self.name)

    def _with_harness(self, curves: Mapping[str, Curve]) -> list[Curve]:
        """The curves of all models with the points of lm-evaluation-harness."""
        options = self.options
        both = []
        for name in options.models:
            model, tokenizer = load_generator(name, options.dtype, processes().device)
            curve = curves.get(name) or Curve(name, model.num_parameters())
            curve.points += harness.measure(model, tokenizer, options.lm_eval, self.shots, options.limit, options.seed)
            both.append(curve)
        return both


def _item(asked: Asked, output: str, answer: str, scores: Mapping[str, float], **details) -> Item:
    task = asked.task
    return Item(
        id=asked.id,
        cluster=f"{task.name}/{asked.number}",
        prompt_hash=text_hash(asked.prompt),
        output=output,
        answer=answer,
        scores=scores,
        group=f"{task.name}/{asked.wanted}-shot",
        details={"expected": asked.example.answer.strip(), "shots": asked.shown, **details},
    )


def _write(
    model: PreTrainedModel, prompts: Prompts, task: Task, asked: Sequence[Asked], max_batch_tokens: int
) -> Iterator[Item]:
    """Answers written by the model, scored."""
    how = Decoding(task.max_new_tokens, stop=task.stop)
    ids = [item.ids for item in asked]
    for at, written in continuations(model, prompts.tokenizer, ids, how, max_batch_tokens):
        scores = answer_scores(task, asked[at].example, written.answer)
        yield _item(asked[at], written.text, written.answer, scores)


def answer_scores(task: Task, example: Example, answer: str) -> dict[str, float]:
    """`acc`: 1 for what equals the expected answer, white space around it left aside.

    Of a judged task 1 for what is correct, and `truth`, which counts manner too: 1 is the best, -1.5 the worst.
    """
    if task.judged:
        judgement = world.judge(example.prompt, answer)
        return {"acc": float(judgement.correct), "truth": judgement.score}
    return {"acc": float(answer == example.answer.strip())}


def _choose(
    model: PreTrainedModel, prompts: Prompts, task: Task, asked: Sequence[Asked], max_batch_tokens: int
) -> Iterator[Item]:
    of_cue = [prompts.cue(task, item.example) for item in asked]
    alone = dict(likelihoods(model, of_cue, max_batch_tokens))
    requests = [Request(item.ids, item.choices) for item in asked]
    for at, likely in likelihoods(model, requests, max_batch_tokens):
        example = asked[at].example
        measures = choice_measures(likely, alone[at])
        taken = {name: values.index(max(values)) for name, values in measures.items()}
        scores = {name: float(example.choices[choice] == example.answer) for name, choice in taken.items()}
        answer = example.choices[taken["acc"]]
        yield _item(asked[at], answer, answer.strip(), scores, logprobs=[round(each.total, 4) for each in likely])


def choice_measures(likely: Sequence[Likelihood], alone: Sequence[Likelihood]) -> dict[str, list[float]]:
    """What each choice is taken by, in nats; `alone`: after the cue without the question.

    Source: GPT-3 section 2.4: per token by default, P(choice | context) / P(choice | cue) on some tasks.
    """
    return {
        "acc": [each.per_token for each in likely],
        "acc_total": [each.total for each in likely],
        "acc_unconditional": [each.total - before.total for each, before in zip(likely, alone, strict=True)],
    }


def _mean_of(parts: Sequence[Figure]) -> Figure:
    return lambda draws: np.mean([part(draws) for part in parts], axis=0)
