"""The whole table: read everything, then cell by cell, the table written anew after each."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.eval import results
from rlhf_kit.eval.tables import TableTask
from rlhf_kit.eval.task import NOTHING_DONE, BatchArguments, LaunchArguments
from rlhf_kit.eval.transfer import readers
from rlhf_kit.eval.transfer.cells import TASK, Making, arguments, finished, make
from rlhf_kit.eval.transfer.config import Cell, Table, read_table
from rlhf_kit.eval.transfer.data import all_guesses, read_all
from rlhf_kit.eval.transfer.page import markdown, page, show
from rlhf_kit.eval.transfer.table import Report, summed_up
from rlhf_kit.eval.transfer.words import sentences
from rlhf_kit.models.weights import TRUSTS_CODE
from rlhf_kit.options import option
from rlhf_kit.pages.shell import REPORT, link_back
from rlhf_kit.processes import processes
from rlhf_kit.storage import as_json
from rlhf_kit.terminal import complain, say
from rlhf_kit.terminal.console import Console
from rlhf_kit.versions import made_by, provenance

TABLE, RESULTS = "table.md", "results.json"
TABLES = Path(__file__).parent
# What a file of options does not have, and a table has.
OF_A_TABLE = dict.fromkeys(("data", "tests", "training", "max_answer_length"), "--table FILE: --config has options")


@dataclass
class TransferArguments(LaunchArguments, BatchArguments):
    output_dir: str | None = option(
        None,
        "Folder of the cells and the table, where an interrupted run resumes. Default: runs/transfer/TABLE. "
        "輸出資料夾",
    )
    limit: int | None = option(None, "The first N questions of each test: a trial, not a result. 只評前 N 題")
    model_set: Literal["world", "hub"] | None = option(
        None,
        "The table that is made: the embedded world's, which needs no network, or the paper's. Default: world. 模型組",
    )
    table: Path | None = option(None, "Another table: YAML, as rlhf_kit/eval/transfer/ has them. 另一張表")
    rows: list[str] = option([], "These rows only, by name. 只做這幾列", whole=True)
    seeds: list[int] | None = option(None, "Instead of the table's. 亂數種子")
    data_dir: Path | None = option(None, "The folder that {data} stands for in the table. 資料夾")


class Transfer(TableTask):
    """Each row with each seed, fine-tuned and tested; the table is written anew after each."""

    name, Arguments = TASK, TransferArguments
    files, beside = (TABLE, RESULTS, REPORT), "a folder a row"

    def read(self) -> list[Cell]:
        options = self.options
        TRUSTS_CODE.set(options.trust_remote_code)
        if options.table and options.model_set:
            raise UserError("--table is a table of its own; leave out --model_set.")
        self.file = options.table or TABLES / f"{options.model_set or 'world'}.yaml"
        table, self.skipped = chosen(read_table(self.file), options.rows, options.seeds)
        self.table = table = replace(table, rows=tuple(map(readers.pinned, table.rows)))
        for row in table.rows:
            if row.name not in self.skipped:
                readers.check(row, read_headers=not options.dry_run)
        self.folder = self.folder or Path(f"runs/transfer/{self.file.stem}")
        self.making = Making(
            table, read_all(table, options.data_dir, options.limit), self.folder, processes(), options.dtype,
            options.limit, options.max_batch_tokens,
        )  # fmt: skip
        cells = ordered(table, self.skipped)
        for cell in cells:
            arguments("", cell, self.making)  # before the first is trained
        return cells

    def is_finished(self, cell: Cell) -> bool:
        return finished(cell, self.making)

    def plan(self) -> None:
        names = ", ".join(row.name for row in self.table.rows if row.name not in self.skipped)
        cells, done = len(self.cells), len(self.done)
        say(f"{self.file}: {cells} cells ({names}) in {self.folder}; {done} are there already.\n{NOTHING_DONE}")

    def begin(self) -> None:
        self.guesses = all_guesses(self.table, self.making.read["tests"])
        self.there, self.started = len(self.done), time.monotonic()

    def make(self, cell: Cell) -> None:
        if processes().is_main_process:
            number, cells = len(self.done) - self.there, len(self.cells) - self.there
            tell(cell, number, cells, time.monotonic() - self.started)
        make(cell, self.making)

    def after(self, cell: Cell) -> None:
        self.write(self.report())

    def report(self) -> Report:
        return summed_up(
            self.file.name, self.table, [cell for cell in self.cells if cell in self.done], len(self.cells),
            self.folder, self.guesses, self.skipped, self.options.limit is None,
        )  # fmt: skip

    def show(self, report: Report) -> None:
        show(report, Console())

    def write(self, report: Report) -> None:
        write(report, self.folder)


def chosen(table: Table, rows: Sequence[str], seeds: Sequence[int] | None) -> tuple[Table, tuple[str, ...]]:
    """The table with the rows and seeds that are asked for, and the names of rows whose checkpoint is missing.

    Raises:
        UserError: for a row that is not there, or when no row is left.
    """
    names = [row.name for row in table.rows]
    unknown = next((name for name in rows if name not in names), None)
    if unknown is not None:
        raise UserError(f"--rows: there is no {unknown!r}.{did_you_mean(unknown, names)} Rows: {', '.join(names)}.")
    kept = tuple(row for row in table.rows if not rows or row.name in rows)
    skipped = tuple(row.name for row in kept if readers.missing(row))
    if len(skipped) == len(kept):
        models = ", ".join(dict.fromkeys(row.model for row in kept))
        raise UserError(f"No row is left: this copy of the kit has no checkpoint {models}. 沒有這些模型。")
    return replace(table, rows=kept, seeds=tuple(dict.fromkeys(seeds or table.seeds))), skipped


def ordered(table: Table, skipped: Sequence[str]) -> list[Cell]:
    """All rows with the first seed, then all with the second: so a first table is there early."""
    return [Cell(row, seed) for seed in table.seeds for row in table.rows if row.name not in skipped]


def tell(cell: Cell, number: int, cells: int, seconds: float) -> None:
    """Which cell comes, and the time left by the mean of those of this run."""
    left = f", about {(cells - number) * seconds / number / 60:.1f} min left 剩餘" if number else ""
    complain(f"[{number + 1}/{cells}] {cell.row.name}, seed {cell.seed}{left}")


def write(report: Report, output: Path) -> None:
    """table.md, report.html, and results.json last."""
    made = provenance()
    results.write(output / TABLE, markdown(report), TASK)
    results.write(output / REPORT, page(report, made_by(made)), TASK)
    for figure in report.figures:
        for seed in figure.seeds:
            link_back(output / figure.row / f"seed-{seed}" / figure.test / REPORT, f"eval {TASK}", output / REPORT)
    record = {
        **asdict(report), "sentences": sentences(report), "table_hash": results.fingerprint(asdict(report.table)),
        **made,
    }  # fmt: skip
    record["guesses"] = {name: score._asdict() for name, score in report.guesses.items()}
    record["orders"] = [{**asdict(order), "verdict": order.verdict} for order in report.orders]
    record["transfers"] = [{**asdict(one), "gate_passed": one.passed} for one in report.transfers]
    results.write(output / RESULTS, json.dumps(as_json(record), indent=2, ensure_ascii=False) + "\n", TASK)
