"""`rlhf-kit eval icl`: learning from examples in the prompt, with zero, one and few of them, over model sizes.

As GPT-3 was measured (Brown et al. 2020, section 2.4), but for what is said here: the shots are drawn for each item
by a hash of (task, item, K, seed); answers are written greedily (the paper: four beams); shots that the model's
context has no room for are left out, the first ones, and counted. Multiple choice takes the likeliest choice, by the
log-likelihood per token (`acc`), in total (`acc_total`) and in total less that after the cue alone
(`acc_unconditional`). With `--apply_chat_template` prompts are put in turns (`icl_tasks.messages`) and everything else
is the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import PartialState
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit import world
from rlhf_kit.errors import UserError
from rlhf_kit.eval import results
from rlhf_kit.eval.icl import lm_eval_tasks as harness
from rlhf_kit.eval.icl.page import Curve, curve_csv, curve_page, points, show
from rlhf_kit.eval.icl.prompts import Asked, Prompts
from rlhf_kit.eval.icl.tasks import Example, Task, draw_shots, tasks
from rlhf_kit.eval.intervals import Figure, mean
from rlhf_kit.eval.items import Item, Results, Run, Settings, percentages
from rlhf_kit.generation.decoding import DEFAULT_BATCH_TOKENS, Decoding, continuations
from rlhf_kit.generation.generators import check_generators, folders, layout, load_generator
from rlhf_kit.generation.likelihood import Likelihood, Request, likelihoods
from rlhf_kit.hashes import text_hash
from rlhf_kit.models.checkpoints import load_tokenizer
from rlhf_kit.models.forward import context_length
from rlhf_kit.models.identity import model_hash
from rlhf_kit.pages.shell import REPORT
from rlhf_kit.processes import processes, quiet
from rlhf_kit.terminal import say
from rlhf_kit.terminal.console import Console

PROTOCOL, VERSION = "gpt3-greedy", 2  # 2: choices as they are tokenized behind their prompt
TASK, CURVE = "icl", "curve.csv"


def measure_icl(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Sequence[Task],
    shots: Sequence[int],
    settings: Settings,
    folder: Path | None = None,
    max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
    state: PartialState | None = None,
) -> Results | None:
    """Measure a model on each task with each number of shots; a group of the results is "TASK/K-shot".

    Args:
        settings: see `icl_settings`.
        folder: see `items.Run`.

    Returns:
        `scores`: the unweighted mean over tasks for each K, "acc_K_shot"; with one task and one K just its own scores.
        None on all processes but the main one.

    Raises:
        UserError: more shots than a task has; a question that does not fit the model's context.
    """
    plan = {
        f"{task.name}/{wanted}-shot/{number}": (task, number, wanted)
        for task in chosen
        for wanted in shots
        for number in range(len(task.examples))[: settings.limit]
    }
    with Run(folder, settings, list(plan), state) as run:
        prompts = Prompts(tokenizer, context_length(model.config), settings.options["layout"] == "chat")
        for task in chosen:
            of_task = [name for name in run.todo if plan[name][0] is task]
            items = [prompts.ask(name, *plan[name], settings.seed) for name in of_task]
            answer = _choose if task.examples[0].choices else _write
            for item in answer(model, prompts, task, items, max_batch_tokens):
                run.add(item)
    return run.finish(_figures, partial(_details, model))


def icl_settings(
    name: str,
    chosen: Sequence[Task],
    shots: Sequence[int],
    seed: int,
    limit: int | None,
    dtype: str,
    asked: Mapping[str, str],
) -> Settings:
    """`asked`: see `generators.layout`."""
    data_hash = results.fingerprint([asdict(task) for task in chosen])
    options = {**asked, "tasks": [task.name for task in chosen], "shots": list(shots), "dtype": dtype}
    return Settings(TASK, PROTOCOL, VERSION, name, model_hash(name), "made here", data_hash, seed, limit, options)


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


def _figures(items: Sequence[Item], clusters: NDArray) -> dict[str, Figure]:
    """Percentages of a group; of all items the unweighted mean over tasks for each number of shots."""
    groups = list(dict.fromkeys(item.group for item in items))
    if len(groups) == 1:
        return percentages(items, clusters)
    of_shots: dict[str, list[Figure]] = {}
    for group in groups:
        values = [100 * item.scores["acc"] if item.group == group else np.nan for item in items]
        of_shots.setdefault(group.rpartition("/")[2], []).append(mean(values, clusters))
    return {f"acc_{shots.replace('-', '_')}": _mean_of(parts) for shots, parts in of_shots.items()}


def _mean_of(parts: Sequence[Figure]) -> Figure:
    return lambda draws: np.mean([part(draws) for part in parts], axis=0)


def _details(model: PreTrainedModel, items: Sequence[Item]) -> dict:
    wanted: dict[str, list[int]] = {}
    for item in items:
        wanted.setdefault(item.group, []).append(item.details["shots"])
    shown = {group: round(sum(lengths) / len(lengths), 2) for group, lengths in wanted.items()}
    return {"parameters": model.num_parameters(), "shots_shown": shown}


def check_template(name: str, chosen: Sequence[Task], shots: int, seed: int) -> None:
    """Raises UserError where the chat template of a model refuses a task's dialogues; they differ in words alone."""
    tokenizer = load_tokenizer(name)
    layout(tokenizer, chat=True)
    prompts = Prompts(tokenizer, None, chat=True)
    for task in chosen:
        prompts.ask(f"{task.name}/{shots}-shot", task, 0, shots, seed)


# --- the command ----------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> None:
    """`rlhf-kit eval icl` with parsed options (`options.icl`). Raises UserError."""
    quiet()
    if not options.tasks and not options.lm_eval:
        raise UserError("Nothing to measure: give --tasks, such as `--tasks world arithmetic`, or --lm-eval.")
    if options.lm_eval:
        harness.check_installed()
        if options.apply_chat_template:
            raise UserError("--lm-eval tasks are asked in plain text here; leave --apply_chat_template out.")
    chosen, shots = tasks(options.tasks), sorted(set(options.shots))
    for task in chosen:
        draw_shots(task, 0, shots[-1], options.seed)  # raises before a model is loaded
    state = processes()
    if options.output is not None:
        results.check_folder(options.output, TASK, (CURVE, REPORT))
    curves = []
    check_generators(options.models)
    for name in options.models if options.apply_chat_template else ():
        check_template(name, chosen, shots[-1], options.seed)
    for name, folder in zip(options.models, folders(options.models, options.output), strict=True):
        model, tokenizer = load_generator(name, options.dtype, state.device)
        curve = Curve(name, model.num_parameters())
        if chosen:
            layout_of = layout(tokenizer, options.apply_chat_template)
            settings = icl_settings(name, chosen, shots, options.seed, options.limit, options.dtype, layout_of)
            measured = measure_icl(model, tokenizer, chosen, shots, settings, folder, options.max_batch_tokens, state)
            curve.points += points(measured) if measured is not None else []
        if options.lm_eval and state.is_main_process:
            curve.points += harness.measure(model, tokenizer, options.lm_eval, shots, options.limit, options.seed)
        curves.append(curve)
        del model  # before the next one is loaded
    if not state.is_main_process:
        return
    show(curves, Console(), options.apply_chat_template)
    if options.output is not None:
        results.write(options.output / CURVE, curve_csv(curves), TASK)
        page = curve_page(curves, chosen, options.limit, options.apply_chat_template)
        results.write(options.output / REPORT, page, TASK)
        say(f"Written 已寫入: {options.output}/report.html, curve.csv, a folder for each model")
