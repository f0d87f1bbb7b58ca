"""A cell of the table, a row with a seed: fine-tuned once, tested on everything, and never made twice.

OUTPUT/ROW/seed-0/cell.json          all that decides it, written first
OUTPUT/ROW/seed-0/model/             while its tests are not finished
OUTPUT/ROW/seed-0/TEST/              settings.json, items.jsonl, results.json, predictions.json, report.html
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, set_seed

from rlhf_kit.errors import UserError
from rlhf_kit.eval import results
from rlhf_kit.eval.extractive import task as extractive
from rlhf_kit.eval.extractive.finetune import ExtractiveConfig, finetune
from rlhf_kit.eval.extractive.models import load_reader
from rlhf_kit.eval.extractive.predict import Prediction
from rlhf_kit.eval.extractive.questions import Question
from rlhf_kit.eval.extractive.windows import make_windows
from rlhf_kit.eval.items import Item, Run, Settings
from rlhf_kit.eval.transfer.config import FIRST, Cell, Row, Table, Test
from rlhf_kit.eval.transfer.data import Read, scores
from rlhf_kit.eval.transfer.readers import missing, new_reader, row_hash, training_defaults, training_parts
from rlhf_kit.inputs import read_json
from rlhf_kit.models.checkpoints import training_precision
from rlhf_kit.storage import replace
from rlhf_kit.versions import versions

TASK, VERSION = "transfer", 1
CELL, MODEL, TRAINED = "cell.json", "model", "trained"


@dataclass(frozen=True)
class Making:
    """What all cells of a run have in common. `read`: of `data.read_all`; the rest as the command's options."""

    table: Table
    read: Mapping[str, Mapping[str, Read]]
    output: Path
    state: PartialState
    dtype: str = "float32"
    limit: int | None = None
    max_batch_tokens: int = 8192

    def training(self, row: Row) -> dict[str, Any]:
        # A row's way of cutting windows replaces the table's.
        cut = {"step", "overlap"} if {"step", "overlap"} & set(row.training) else ()
        table = {name: value for name, value in self.table.training.items() if name not in cut}
        return {**training_defaults(row), **table, **row.training}

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Of the rows' models, read once a run."""
        return {row.name: row_hash(row) for row in self.table.rows if not missing(row)}

    def learned(self, row: Row) -> list[Question]:
        return [one for name in row.fine_tuned_on for one in self.read["data"][name].questions]

    def deciding(self, cell: Cell) -> dict[str, Any]:
        """All that decides what the cell's model becomes: JSON values."""
        row = cell.row
        record = {
            "model": row.model, "model_hash": self.hashes[row.name], "from_scratch": row.from_scratch,
            "sizes": dict(row.sizes), "training": self.training(row),
            "data": [[self.read["data"][name].source, self.read["data"][name].hash] for name in row.fine_tuned_on],
            "seed": cell.seed, "processes": self.state.num_processes, **training_precision(), "dtype": self.dtype,
            "version": VERSION, "versions": versions(),
        }  # fmt: skip
        return json.loads(json.dumps(record))


def finished(cell: Cell, making: Making) -> bool:
    """Whether nothing of it is left to be made. Raises UserError where its folder holds one of other settings."""
    check(cell, making)
    return all((cell.folder(making.output) / test.name / extractive.REPORT).is_file() for test in making.table.tests)


def check(cell: Cell, making: Making) -> None:
    """Raises UserError where the cell's folder, or one of its tests', is of other settings."""
    folder, now = cell.folder(making.output), making.deciding(cell)
    path = folder / CELL
    if path.is_file():
        was = read_json(path)
        if not isinstance(was, dict):
            raise UserError(f"{str(path)!r} holds no settings of a cell. Remove {str(folder)!r}.")
        faults = [
            f"{name} {was.get(name)!r}, now {now.get(name)!r}"
            for name in {**was, **now}
            if was.get(name) != now.get(name)
        ]
        if faults:
            raise UserError(
                f"{str(folder)!r} was made by other settings ({'; '.join(faults)}); "
                "give another folder with --output_dir. 設定不同，請換一個輸出資料夾。"
            )
    for test in making.table.tests:
        if (folder / test.name).is_dir():
            _run_of(test, cell, making)


def make(cell: Cell, making: Making) -> None:
    """Train it and test it, as far as that is not done yet; on every process alike."""
    folder, state = cell.folder(making.output), making.state
    results.of(folder, TASK).check("--output_dir", (CELL, MODEL, extractive.LEARNED))
    set_seed(cell.seed)  # of new weights
    new = None if (folder / MODEL / TRAINED).is_file() else new_reader(cell.row, making.learned(cell.row))
    if state.is_main_process:
        record = json.dumps(making.deciding(cell), indent=2, ensure_ascii=False) + "\n"
        results.write(folder / CELL, record, TASK)
    state.wait_for_everyone()
    model, tokenizer = _trained(cell, making, new)
    del new  # its memory
    for test in making.table.tests:
        if not (folder / test.name / extractive.REPORT).is_file():
            _measure(test, cell, making, model, tokenizer)
    if state.is_main_process:
        results.of(folder, TASK).remove(MODEL)
    state.wait_for_everyone()


# --- training -------------------------------------------------------------------------------------------------------


def _trained(
    cell: Cell, making: Making, new: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The fine-tuned model in eval mode: the `new` one trained, or what an interrupted run left of it."""
    folder, state = cell.folder(making.output) / MODEL, making.state
    if new is not None:
        model, tokenizer = new
        questions = making.learned(cell.row)
        parts = training_parts(cell.row, model)
        with tempfile.TemporaryDirectory() as scratch:
            trainer = finetune(model, tokenizer, questions, arguments(scratch, cell, making), **parts)
        _save(trainer, tokenizer, folder, state)
    # Read anew even when it was just trained: so a run that was interrupted here gives the same answers.
    return load_reader(str(folder), making.dtype, state.device)


def arguments(scratch: str, cell: Cell, making: Making) -> ExtractiveConfig:
    """Of the cell's training. Raises UserError for what the table sets and transformers refuses."""
    options = {**training_precision(), **making.training(cell.row)}
    try:
        return ExtractiveConfig(scratch, seed=cell.seed, use_cpu=making.state.device.type == "cpu", **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"row {cell.row.name}: training: {' '.join(str(error).split())}") from error


def _save(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path, state: PartialState) -> None:
    if state.is_main_process:
        home = results.of(folder.parent, TASK)
        home.claim(MODEL)
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        lines = extractive.learned_windows(trainer.windows)
        results.write(folder.parent / extractive.LEARNED, json.dumps(lines) + "\n", TASK)
        replace(folder / TRAINED, "")
        home.settle(MODEL)
    state.wait_for_everyone()


# --- tests ----------------------------------------------------------------------------------------------------------


def _run_of(test: Test, cell: Cell, making: Making) -> Run:
    """The test under way in its folder. Raises UserError where that holds items of other settings."""
    read, training = making.read["tests"][test.name], making.training(cell.row)
    args = extractive.as_cut(
        {name: training.get(name, getattr(ExtractiveConfig, name)) for name in extractive.CUTTING}
    )
    scorers = [name.removesuffix(FIRST) for name in test.scorers]
    settings = Settings(
        TASK, " ".join(test.scorers), extractive.version(*scorers), cell.row.model,
        results.fingerprint(making.deciding(cell)),
        read.source, read.hash, cell.seed, making.limit,
        {"split": test.split, "max_answer_length": making.table.max_answer_length, **args},
    )  # fmt: skip
    folder = cell.folder(making.output) / test.name
    return Run(
        folder,
        settings,
        [question.id for question in read.questions],
        making.state,
        unit="questions",
        files=extractive.FILES,
    )


def _measure(
    test: Test, cell: Cell, making: Making, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    read, run = making.read["tests"][test.name], _run_of(test, cell, making)
    options = run.settings.options
    windows = make_windows(read.questions, tokenizer, **{name: options[name] for name in extractive.CUTTING})
    with run:
        answered = extractive.answered(
            model, tokenizer, read.questions, windows, run.todo,
            max_answer_length=making.table.max_answer_length, max_batch_tokens=making.max_batch_tokens,
        )  # fmt: skip
        for question, prediction in answered:
            run.add(_item(test, question, prediction))
    first = test.scorers[0].removesuffix(FIRST)
    details = extractive.details(read.questions, read.counts, windows, first) | {"scorer": test.scorers[0]}  # ":first"
    measured = run.finish(details=lambda items: details)
    if measured is not None:
        extractive.write(run.folder, measured, run.ordered, read.questions, TASK)


def _item(test: Test, question: Question, prediction: Prediction) -> Item:
    """Scored by the first scorer as `em` and `f1`, by another one as `cmrc em` and `cmrc f1`."""
    first, *others = test.scorers
    item = extractive.item(question, prediction, partial(scores, first))
    more = {
        f"{scorer} {name}": value
        for scorer in others
        for name, value in scores(scorer, prediction.text, question.references)._asdict().items()
    }
    return dataclasses.replace(item, scores={**item.scores, **more})
