"""Extractive question answering measured: data checked, perhaps fine-tuned, predicted, scored officially."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import LoraConfig
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rlhf_kit.data.sources import WORLD
from rlhf_kit.errors import UserError
from rlhf_kit.eval import results, scorers
from rlhf_kit.eval.extractive.data import Counts, Question, read_questions
from rlhf_kit.eval.extractive.finetune import ExtractiveConfig, finetune
from rlhf_kit.eval.extractive.models import check_length, load_reader
from rlhf_kit.eval.extractive.page import answerable_parts, report_page
from rlhf_kit.eval.extractive.predict import Prediction, predictions
from rlhf_kit.eval.extractive.windows import STEP, Windows, make_windows
from rlhf_kit.eval.items import Item, Results
from rlhf_kit.eval.scorers import SCORERS, SQUAD2
from rlhf_kit.eval.task import LaunchArguments, Task, TaskArguments
from rlhf_kit.hashes import text_hash
from rlhf_kit.inputs import read_json
from rlhf_kit.models import adapters
from rlhf_kit.models.checkpoints import DTYPES, load_tokenizer, training_precision
from rlhf_kit.options import option
from rlhf_kit.pages.shell import REPORT
from rlhf_kit.processes import processes
from rlhf_kit.storage import replace
from rlhf_kit.terminal.console import Console

NAME = "extractive"
PREDICTIONS, N_BEST = "predictions.json", "nbest.json"
FILES = (PREDICTIONS, N_BEST, REPORT)
NULL_ODDS, NA_PROB = "null_odds.json", "na_prob.json"  # of SQuAD 2.0
MODEL, TRAINED, LEARNED = "model", "training.json", "windows.json"
VERSIONS = {"cmrc": 2}  # 2: NLTK's words, as the official script
CUTTING = ("max_length", "overlap", "step", "max_query_length")  # of passages into windows


@dataclass
class ExtractiveArguments(LaunchArguments, TaskArguments):
    model_name_or_path: str | None = option(None, "A question answering model: folder or hub id. 模型", required=True)
    dataset_name: str | None = option(
        None,
        "SQuAD's format (SQuAD, XQuAD, MLQA, DRCD, CMRC): file, folder or hub id; or world:squad_en, world:squad_zh. "
        "測試資料",
        required=True,
    )
    split: str | None = option(
        None, "Split of a folder or a hub dataset. Default: validation; of the world test. 資料的分割"
    )
    scorer: str | None = option(
        None,
        "The dataset's official scorer. XQuAD uses squad; squad2 takes questions without an answer; drcd drops ASCII "
        "punctuation only. 評分方式",
        required=True,
        choices=SCORERS,
    )
    on_bad_row: Literal["error", "drop"] = option(
        "error", "What to do with a faulty question: stop, or leave it out and count it. 有問題的題目"
    )
    max_length: int = option(384, "Tokens of a window. 視窗長度")
    step: int | None = option(None, "Tokens from one window to the next, BERT's doc_stride. Default: 128. 步幅")
    overlap: int | None = option(None, "Tokens that windows share, Hugging Face's doc_stride. 重疊")
    max_query_length: int = option(64, "Tokens of a question. 問題長度")
    max_answer_length: int = option(30, "Tokens of an answer. 答案長度")
    null_score_diff_threshold: float | None = option(
        None,
        "squad2: predict no answer where its score exceeds the best span's by more than this. Default: 0. 無答案門檻",
    )
    n_best: int = option(20, "Candidate answers kept per question. 保留的候選答案數")
    train_dataset_name: list[str] = option(
        [],
        "Fine-tune on this data first: one source or several, as for --dataset_name. 訓練資料",
        whole=True,
        short="train_data",
    )
    num_train_epochs: float = option(3.0, "Passes over the training data. 訓練輪數", short="epochs")
    learning_rate: float = option(5e-5, "Its peak. 學習率")
    batch_size: int = option(32, "Windows per training batch. 批次大小")
    lora_r: int | None = option(None, "Train only LoRA adapters of this rank and the head. LoRA 的秩", short="lora")
    freeze: str | None = option(
        None, "Freeze the embeddings, the encoder (only the embeddings learn), or the first N layers (N-layers). 凍結"
    )


class Extractive(Task):
    """Questions answered by a span of their passage, by a model that may be fine-tuned first."""

    name, unit = NAME, "questions"
    Arguments = ExtractiveArguments

    @property
    def protocol(self) -> str:
        return self.options.scorer

    @property
    def version(self) -> int:
        return version(self.options.scorer)

    @property
    def files(self) -> list[str]:
        odds = [NULL_ODDS, NA_PROB] if self.unanswerable else []
        return [*FILES, *([MODEL] if self.training else []), *odds]

    def read(self) -> list[Question]:
        options = self.options
        is_world = options.dataset_name.partition(":")[0] == WORLD
        self.split = options.split or ("test" if is_world else "validation")
        self.null_threshold = _null_threshold(options)
        self.unanswerable = self.null_threshold is not None
        questions, self.counts = self._questions(options.dataset_name, self.split)
        return questions

    def _questions(self, source: str, split: str) -> tuple[list[Question], Counts]:
        on_bad_row = self.options.on_bad_row
        return read_questions(source, split, on_bad_row=on_bad_row, unanswerable=self.unanswerable)

    def check(self) -> None:
        """Read the training data: all questions, and by source what was mended and left out."""
        options = self.options
        if not options.train_dataset_name and (options.lora_r or options.freeze):
            raise UserError(
                "--lora_r and --freeze are training options; give --train_dataset_name too. "
                "請一併給 --train_dataset_name。"
            )
        self.lessons, self.training_data = [], {}
        for source in options.train_dataset_name:
            questions, counts = self._questions(source, "train")
            self.lessons += questions
            self.training_data[source] = asdict(counts)

    @cached_property
    def training(self) -> dict[str, Any] | None:
        """What decides a trained model besides the windows and the seed; None without training."""
        if not self.lessons:
            return None
        options = self.options
        return {
            "train_data": options.train_dataset_name, "epochs": options.num_train_epochs,
            "learning_rate": options.learning_rate, "batch_size": options.batch_size, "lora": options.lora_r,
            "freeze": options.freeze,
            "data_hash": results.fingerprint([asdict(question) for question in self.lessons]),
        }  # fmt: skip

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.model, needs_eos=False)

    def prepare(self) -> list[str]:
        options = self.options
        self.cutting = {
            "max_length": options.max_length, "overlap": options.overlap, "step": options.step,
            "max_query_length": options.max_query_length,
        }  # fmt: skip
        self.windows = make_windows(self.rows, self.tokenizer, **self.cutting)
        return [question.id for question in self.rows]

    def settings(self) -> dict[str, Any]:
        options = self.options
        threshold = {"null_score_diff_threshold": self.null_threshold} if self.unanswerable else {}
        return {
            "split": self.split, **as_cut(self.cutting), "max_answer_length": options.max_answer_length,
            "n_best": options.n_best, "dtype": options.dtype, "training": self.training, **threshold,
        }  # fmt: skip

    def load(self, device: torch.device) -> PreTrainedModel:
        model = self._trained() if self.training else load_reader(self.model, self.options.dtype, device)[0]
        check_length(model, self.options.max_length)
        return model

    def _trained(self) -> PreTrainedModel:
        """The fine-tuned model: that of the folder if it was trained alike before, else a new one, kept there."""
        options, state = self.options, processes()
        record = {**self.training, "seed": options.seed, "model_hash": self.model_hash, **self.cutting}
        with tempfile.TemporaryDirectory() as nowhere:
            folder = self.folder / MODEL if self.folder else Path(nowhere)
            mark = folder / TRAINED
            if mark.is_file() and read_json(mark) == record:
                return load_reader(str(folder), options.dtype, state.device)[0]
            set_seed(options.seed)  # a new head
            model, tokenizer = load_reader(self.model, trained=False)
            args = ExtractiveConfig(
                str(folder), num_train_epochs=options.num_train_epochs, learning_rate=options.learning_rate,
                per_device_train_batch_size=options.batch_size, seed=options.seed, freeze=options.freeze,
                use_cpu=state.device.type == "cpu", **self.cutting, **training_precision(),
            )  # fmt: skip
            lora = LoraConfig(r=options.lora_r, lora_alpha=2 * options.lora_r) if options.lora_r else None
            trainer = finetune(model, tokenizer, self.lessons, args, peft_config=lora)
            if self.folder and state.is_main_process:
                home = results.of(self.folder, NAME)
                home.remove(f"{MODEL}/{TRAINED}")
                home.claim(MODEL)
                adapters.save(trainer.model, folder)
                tokenizer.save_pretrained(folder)
                replace(folder / LEARNED, json.dumps(learned_windows(trainer.windows)) + "\n")
                replace(mark, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
                home.settle(MODEL)
            state.wait_for_everyone()
            return trainer.model.to(DTYPES[options.dtype]).eval()

    def ask(self, model: PreTrainedModel, ids: Sequence[str]) -> Iterator[Item]:
        options, scorer = self.options, SCORERS[self.options.scorer]
        answers = answered(
            model, self.tokenizer, self.rows, self.windows, ids, max_answer_length=options.max_answer_length,
            n_best=options.n_best, null_threshold=self.null_threshold, max_batch_tokens=options.max_batch_tokens,
        )  # fmt: skip
        for question, prediction in answers:
            yield item(question, prediction, scorer, self.unanswerable)

    def details(self, items: Sequence[Item]) -> dict[str, Any]:
        about = details(self.rows, self.counts, self.windows, self.options.scorer)
        about |= {"training_data": self.training_data} if self.lessons else {}
        return about | (unanswerable_details(items) if self.unanswerable else {})

    def show(self, results: Results) -> None:
        show(results)

    def write(self, results: Results, items: Sequence[Item]) -> None:
        write(self.folder, results, items, self.rows)


def version(*names: str) -> int:
    """Of a measurement by these scorers: it is raised when one of them gives other figures."""
    return max(VERSIONS.get(name, 1) for name in names)


def as_cut(cutting: Mapping[str, Any]) -> dict[str, Any]:
    """What `make_windows` makes of its options: with neither overlap nor step the step is BERT's."""
    return {**cutting, "step": (cutting["step"] or STEP) if cutting["overlap"] is None else None}


def answered(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], windows: Windows,
    ids: Sequence[str], **options: Any,
) -> Iterator[tuple[Question, Prediction]]:  # fmt: skip
    """The questions of these ids with their predictions. `options`: of `predictions`."""
    todo = set(ids)
    by_id = {question.id: question for question in questions}
    part, _ = windows.of(np.array([at for at, name in enumerate(by_id) if name in todo], np.int64))
    for prediction in predictions(model, tokenizer.pad_token_id, questions, part, **options):
        yield by_id[prediction.id], prediction


def _null_threshold(options: ExtractiveArguments) -> float | None:
    """Above which there is no answer; None where every question has one."""
    threshold = options.null_score_diff_threshold
    if options.scorer == SQUAD2:
        return 0.0 if threshold is None else threshold
    if threshold is not None:
        raise UserError(
            f"--null_score_diff_threshold says when there is no answer, and by --scorer {options.scorer} every "
            f"question has one; give --scorer {SQUAD2}, or leave it out."
        )
    return None


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
    --null_score_diff_threshold, None: say nothing to any question.
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
    folder: Path, found: Results, items: Sequence[Item], questions: Sequence[Question], task: str = NAME
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
        where = "with no answer to any" if at is None else f"at --null_score_diff_threshold {at}"
        facts.append(f"best F1 {best['best_f1']:.1f} {where} 最佳門檻")
    console.print("; ".join(facts), soft_wrap=True)
    if not found.reportable:
        console.print("--limit was given: not a result to report. 只評了一部分，不可當作正式結果。", soft_wrap=True)
