"""Extractive question answering measured: data checked, perhaps fine-tuned, predicted, scored officially."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from peft import LoraConfig
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rlhf_kit.data.sources import WORLD
from rlhf_kit.errors import UserError
from rlhf_kit.eval import results, scorers
from rlhf_kit.eval.extractive.data import Counts, Question, read_questions
from rlhf_kit.eval.extractive.finetune import ExtractiveConfig, finetune
from rlhf_kit.eval.extractive.models import check_length, load_reader
from rlhf_kit.eval.extractive.options import SCORERS, SQUAD2, version
from rlhf_kit.eval.extractive.page import answerable_parts, report_page
from rlhf_kit.eval.extractive.predict import Prediction, predictions
from rlhf_kit.eval.extractive.windows import STEP, Windows, make_windows
from rlhf_kit.eval.items import Item, Results, Run, Settings
from rlhf_kit.hashes import text_hash
from rlhf_kit.inputs import read_json
from rlhf_kit.models import adapters
from rlhf_kit.models.checkpoints import DTYPES, load_tokenizer, training_precision
from rlhf_kit.models.identity import model_hash
from rlhf_kit.pages.shell import REPORT
from rlhf_kit.processes import processes, quiet
from rlhf_kit.storage import replace
from rlhf_kit.terminal import say
from rlhf_kit.terminal.console import Console

TASK = "extractive"
PREDICTIONS, N_BEST = "predictions.json", "nbest.json"
FILES = (PREDICTIONS, N_BEST, REPORT)
NULL_ODDS, NA_PROB = "null_odds.json", "na_prob.json"  # of SQuAD 2.0
MODEL, TRAINED, LEARNED = "model", "training.json", "windows.json"
CUTTING = ("max_length", "overlap", "step", "max_query_length")  # of passages into windows


def run(options: argparse.Namespace) -> None:
    """`rlhf-kit eval extractive` with parsed options (`options.py`). Raises UserError."""
    quiet()
    split = options.split or ("test" if options.data.partition(":")[0] == WORLD else "validation")
    null_threshold = _null_threshold(options)
    unanswerable = null_threshold is not None
    questions, counts = read_questions(options.data, split, on_bad_row=options.on_bad_row, unanswerable=unanswerable)
    questions = questions[: options.limit]
    learning, mended = _training_questions(options, unanswerable)
    cutting = {name: getattr(options, name) for name in CUTTING}
    tokenizer = load_tokenizer(options.model, needs_eos=False)
    windows = make_windows(questions, tokenizer, **cutting)
    state = processes()
    training = _training(options, learning)
    settings = Settings(
        TASK, options.scorer, version(options.scorer), options.model, model_hash(options.model), options.data,
        results.fingerprint([asdict(question) for question in questions]), options.seed, options.limit,
        {
            "split": split, **as_cut(cutting),
            "max_answer_length": options.max_answer_length, "n_best": options.n_best, "dtype": options.dtype,
            "training": training, **({"null_score_diff_threshold": null_threshold} if unanswerable else {}),
        },
    )  # fmt: skip
    ids, files = [question.id for question in questions], [*FILES, *([MODEL] if training else [])]
    files += [NULL_ODDS, NA_PROB] if unanswerable else []
    making = Run(options.output, settings, ids, state, unit="questions", files=files)
    model = None
    if making.resumed < len(questions):  # on every process alike: they train together
        if training:
            model = _trained(options, learning, training, state)
        else:
            model, _ = load_reader(options.model, options.dtype, state.device)
        check_length(model, options.max_length)
    with making:
        answer(
            making, model, tokenizer, questions, windows,
            partial(item, scorer=SCORERS[options.scorer], unanswerable=unanswerable),
            max_answer_length=options.max_answer_length, n_best=options.n_best, null_threshold=null_threshold,
            max_batch_tokens=options.max_batch_tokens,
        )  # fmt: skip
    extra = {"training_data": mended} if learning else {}
    about = details(questions, counts, windows, options.scorer) | extra
    measured = making.finish(details=lambda items: about | (unanswerable_details(items) if unanswerable else {}))
    if measured is not None:
        show(measured)
        if options.output is not None:
            write(options.output, measured, making.ordered, questions)
            model_there = f"; the model 模型: {options.output / MODEL}" if training else ""
            say(f"Written 已寫入: {options.output}/{results_names()}{model_there}")


def as_cut(cutting: Mapping[str, Any]) -> dict[str, Any]:
    """What `make_windows` makes of its options: with neither overlap nor step the step is BERT's."""
    return {**cutting, "step": (cutting["step"] or STEP) if cutting["overlap"] is None else None}


def answer(
    making: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question],
    windows: Windows, item_of: Callable[[Question, Prediction], Item], **options: Any,
) -> None:  # fmt: skip
    """Answer the run's questions that have no item yet. `options`: of `predictions`."""
    todo = set(making.todo)
    by_id = {question.id: question for question in questions}
    part, _ = windows.of(np.array([at for at, name in enumerate(by_id) if name in todo], np.int64))
    for prediction in predictions(model, tokenizer.pad_token_id, questions, part, **options):
        making.add(item_of(by_id[prediction.id], prediction))


# --- fine-tuning ----------------------------------------------------------------------------------------------------


def _null_threshold(options: argparse.Namespace) -> float | None:
    """Above which there is no answer; None where every question has one."""
    threshold = options.null_score_diff_threshold
    if options.scorer == SQUAD2:
        return 0.0 if threshold is None else threshold
    if threshold is not None:
        raise UserError(
            f"--null-score-diff-threshold says when there is no answer, and by --scorer {options.scorer} every "
            f"question has one; give --scorer {SQUAD2}, or leave it out."
        )
    return None


def _training_questions(options: argparse.Namespace, unanswerable: bool) -> tuple[list[Question], dict[str, Any]]:
    """All of them, and by source what was mended and left out."""
    if not options.train_data and (options.lora or options.freeze):
        raise UserError("--lora and --freeze say how to train; give --train-data too. 請一併給 --train-data。")
    read = [
        read_questions(source, "train", on_bad_row=options.on_bad_row, unanswerable=unanswerable)
        for source in options.train_data
    ]
    counts = {source: asdict(count) for source, (_, count) in zip(options.train_data, read, strict=True)}
    return [question for questions, _ in read for question in questions], counts


def _training(options: argparse.Namespace, learning: Sequence[Question]) -> dict[str, Any] | None:
    """What decides a trained model besides the windows and the seed; None without training."""
    if not learning:
        return None
    names = ("train_data", "epochs", "learning_rate", "batch_size", "lora", "freeze")
    chosen = {name: getattr(options, name) for name in names}
    return chosen | {"data_hash": results.fingerprint([asdict(question) for question in learning])}


def _trained(
    options: argparse.Namespace, learning: Sequence[Question], training: Mapping[str, Any], state: PartialState
) -> PreTrainedModel:
    """The fine-tuned model: that of the output folder if it was trained alike before, else a new one, kept there."""
    record = {**training, "seed": options.seed, "model_hash": model_hash(options.model)}
    record |= {name: getattr(options, name) for name in CUTTING}
    with tempfile.TemporaryDirectory() as nowhere:
        folder = options.output / MODEL if options.output else Path(nowhere)
        mark = folder / TRAINED
        if mark.is_file() and read_json(mark) == record:
            return load_reader(str(folder), options.dtype, state.device)[0]
        set_seed(options.seed)  # a new head
        model, tokenizer = load_reader(options.model, trained=False)
        args = ExtractiveConfig(
            str(folder), num_train_epochs=options.epochs, learning_rate=options.learning_rate,
            per_device_train_batch_size=options.batch_size, seed=options.seed, freeze=options.freeze,
            max_length=options.max_length, overlap=options.overlap, step=options.step,
            max_query_length=options.max_query_length, use_cpu=state.device.type == "cpu", **training_precision(),
        )  # fmt: skip
        lora = LoraConfig(r=options.lora, lora_alpha=2 * options.lora) if options.lora else None
        trainer = finetune(model, tokenizer, learning, args, peft_config=lora)
        if options.output and state.is_main_process:
            home = results.of(options.output, TASK)
            home.remove(f"{MODEL}/{TRAINED}")
            home.claim(MODEL)
            adapters.save(trainer.model, folder)
            tokenizer.save_pretrained(folder)
            replace(folder / LEARNED, json.dumps(learned_windows(trainer.windows)) + "\n")
            replace(mark, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
            home.settle(MODEL)
        state.wait_for_everyone()
        return trainer.model.to(DTYPES[options.dtype]).eval()


def learned_windows(windows: Windows) -> dict[str, list[str]]:
    """Of the training questions the ids that were cut, whose answer was widened to whole tokens, or has no token."""
    return {name: list(getattr(windows, name)) for name in ("cut_questions", "widened", "untold")}


# --- items and files ------------------------------------------------------------------------------------------------


def item(question: Question, prediction: Prediction, scorer: scorers.Scorer, unanswerable: bool = False) -> Item:
    """`unanswerable`: questions may have no answer, so that there are scores of either part besides."""
    score = scorer(prediction.text, question.references)
    scores, more = {"em": score.em, "f1": score.f1}, {}
    if unanswerable:
        scores |= {f"{_part(question.references)}_{name}": value for name, value in score._asdict().items()}
        more = {name: getattr(prediction, name) for name in ("null_score_difference", "no_answer_probability")}
    return Item(
        question.id, question.group, text_hash(f"{question.question}\n{question.context}"), prediction.text,
        prediction.text, scores, group=question.kind,
        details={
            "question": question.question, "references": question.references, "start": prediction.start,
            "probability": prediction.probability,
            "n_best": [candidate._asdict() for candidate in prediction.n_best], **more,
        },
    )  # fmt: skip


def _part(references: Sequence[str]) -> str:
    return "HasAns" if references else "NoAns"


def unanswerable_details(items: Sequence[Item]) -> dict[str, Any]:
    """How many questions have an answer and how many none, and the official script's best thresholds.

    They are of the answers as they are written, with `na_prob.json`; `..._null_score_diff` is the same as a value of
    --null-score-diff-threshold, None: say nothing to any question.
    """
    questions = [
        scorers.Answered(
            scorers.Score(one.scores["em"], one.scores["f1"]), bool(one.details["references"]), one.answer,
            one.details["no_answer_probability"],
        )
        for one in items
    ]  # fmt: skip
    best = {name: value for name, value in scorers.squad2_report(questions).items() if name.startswith("best_")}
    for name in ("best_exact", "best_f1"):
        best[f"{name}_null_score_diff"] = max(
            (
                one.details["null_score_difference"]
                for one in items
                if one.details["no_answer_probability"] == best[f"{name}_thresh"]
            ),
            default=None,
        )
    parts = Counter(_part(one.details["references"]) for one in items)
    return {"parts": dict(parts), "best_threshold": best}


def details(questions: Sequence[Question], counts: Counts, windows: Windows, scorer: str) -> dict[str, Any]:
    """What was read, cut and mended, and how a person scores where there are two answers to a question."""
    everywhere = all(len(one.answers) > 1 for one in questions)
    humans = [scorers.human(SCORERS[scorer], one.references) for one in questions] if everywhere else []
    return {
        "scorer": scorer,
        "human": {
            name: 100 * sum(getattr(score, name) for score in humans) / len(humans) for name in ("em", "f1")
        } if humans else None,
        "references_a_question": sum(len(question.answers) for question in questions) / len(questions),
        "windows": len(windows),
        "questions_cut": list(windows.cut_questions),
        "questions_realigned": list(counts.realigned),
        "questions_dropped": counts.dropped,
    }  # fmt: skip


def write(
    folder: Path, found: Results, items: Sequence[Item], questions: Sequence[Question], task: str = TASK
) -> None:
    """predictions.json and, of SQuAD 2.0, na_prob.json as the official scorers read them, nbest.json, and the page."""

    def dump(value: Any) -> str:
        return json.dumps(value, indent=1, ensure_ascii=False) + "\n"

    results.write(folder / PREDICTIONS, dump({item.id: item.answer for item in items}), task)
    results.write(folder / N_BEST, dump({item.id: item.details["n_best"] for item in items}), task)
    if found.details["scorer"] == SQUAD2:
        for file, name in ((NULL_ODDS, "null_score_difference"), (NA_PROB, "no_answer_probability")):
            results.write(folder / file, dump({item.id: item.details[name] for item in items}), task)
    results.write(folder / REPORT, report_page(found, items, questions), task)


def results_names() -> str:
    return f"results.json, items.jsonl, {PREDICTIONS}, {N_BEST}, {REPORT}"


def show(found: Results) -> None:
    """A row a kind of question with its intervals, the whole below, and what to know of it."""
    console = Console()
    settings, details = found.settings, found.details
    head = f"{settings.model} · {settings.data} ({settings.options['split']}) · scorer {details['scorer']}"
    console.print(head, soft_wrap=True)
    table = Table.grid(padding=(0, 2))
    table.add_row("question 問題", "n 題數", "EM", "F1", "95 %")
    for name, part in [*found.groups.items(), *answerable_parts(found).items(), ("all 全部", found.measured)]:
        bounds = part.intervals["f1"]
        between = f"{bounds[0]:.1f} to {bounds[1]:.1f}" if bounds else ""
        table.add_row(name, str(part.n["items"]), f"{part.scores['em']:.1f}", f"{part.scores['f1']:.1f}", between)
    if details["human"]:
        table.add_row("human 人", "", f"{details['human']['em']:.1f}", f"{details['human']['f1']:.1f}")
    console.print(table)
    facts = [
        f"{details['windows']} windows 視窗",
        f"{details['references_a_question']:.2g} references a question 參考答案",
    ]
    facts += [
        f"{len(details[key])} {what}"
        for key, what in (("questions_cut", "questions cut 問題被截短"), ("questions_realigned", "realigned 重新對齊"))
        if details[key]
    ]
    facts += [f"{len(ids)} dropped 略過: {fault}" for fault, ids in details["questions_dropped"].items()]
    if best := details.get("best_threshold"):
        at = best["best_f1_null_score_diff"]
        where = "with no answer to any" if at is None else f"at --null-score-diff-threshold {at}"
        facts.append(f"best F1 {best['best_f1']:.1f} {where} 最佳門檻")
    console.print("; ".join(facts), soft_wrap=True)
    if not found.reportable:
        console.print("--limit was given: not a result to report. 只評了一部分，不可當作正式結果。", soft_wrap=True)
