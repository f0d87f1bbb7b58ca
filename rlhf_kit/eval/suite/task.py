"""The suite measured: each entry on each model by its own command, then each stage against the one before it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.eval import results, runner
from rlhf_kit.eval.compare import compare_folders
from rlhf_kit.eval.items import RESULTS as ITEM_RESULTS
from rlhf_kit.eval.items import read_results
from rlhf_kit.eval.suite.entries import Entry, read_suite
from rlhf_kit.eval.suite.page import GAINED, LOST, Change, Report, Value, markdown, page, show
from rlhf_kit.eval.tables import TableTask
from rlhf_kit.eval.task import OutputArguments
from rlhf_kit.generation.generators import check_generators, folders
from rlhf_kit.models.revisions import named_models
from rlhf_kit.options import option
from rlhf_kit.pages.shell import REPORT, link_back
from rlhf_kit.processes import processes
from rlhf_kit.storage import as_json
from rlhf_kit.terminal import complain
from rlhf_kit.terminal.console import Console
from rlhf_kit.versions import made_by, provenance

TASK = "suite"
TABLE, RESULTS = "suite.md", "suite.json"
WORLD_SUITE = Path(__file__).with_name("world.yaml")


@dataclass
class SuiteArguments(OutputArguments):
    models: list[str] = option(
        [],
        "NAME=M: folders or hub ids in the order of training; without NAME= the folder's name. 依訓練順序的模型",
        required=True,
        whole=True,
    )
    suite: Path | None = option(None, "YAML: what is measured. Default: the world's suite. 評測清單")
    limit: int | None = option(None, "N items of each entry at most: a trial, not a result. 只評前 N 筆")


class Suite(TableTask):
    """Every entry on every model, each by its own command, and each model against the one before it.

    A cell is a model's name and an entry. Of entries that ask for the same measurement the first alone is measured.
    """

    name, Arguments = TASK, SuiteArguments
    files, beside = (REPORT, TABLE, RESULTS), "a folder a model"

    def read(self) -> list[tuple[str, Entry]]:
        self.file = self.options.suite or WORLD_SUITE
        self.models, self.entries = named_models(self.options), read_suite(self.file)
        self.homes = first_alike(self.entries)
        if not self.options.dry_run:
            check_generators(self.models.values())
        return [(name, entry) for name in self.models for entry in self.entries]

    def plan(self) -> None:
        for cell in self.cells:
            self.make(cell)

    def begin(self) -> None:
        if processes().is_main_process:
            results.of(self.folder, TASK).remove(RESULTS)  # from here on the folder holds an unfinished report

    def make(self, cell: tuple[str, Entry]) -> None:
        """What was measured there before is not made again."""
        name, entry = cell
        if self.homes[entry.name] is entry:
            if processes().is_main_process:
                complain(f"{name}: {entry.name}")
            measure(entry, name, self.models[name], self.folder, self.options)

    def after(self, cell: tuple[str, Entry]) -> None:
        name, entry = cell
        read_value(entry, name, self.results_folder(cell))  # an entry that names no score is refused here

    def results_folder(self, cell: tuple[str, Entry]) -> Path:
        """Where its items lie."""
        name, home = cell[0], self.homes[cell[1].name]
        folder = self.folder / name / home.name
        return folders([self.models[name]], folder)[0] if home.several_models else folder

    def linked_file(self, cell: tuple[str, Entry]) -> str:
        """The page that the entry's command wrote, or its results, as seen from the report."""
        page = self.folder / cell[0] / self.homes[cell[1].name].name / REPORT
        file = page if page.is_file() else self.results_folder(cell) / ITEM_RESULTS
        return file.relative_to(self.folder).as_posix()

    def report(self) -> Report:
        values = {
            (name, entry.name): replace(
                read_value(entry, name, self.results_folder((name, entry))), file=self.linked_file((name, entry))
            )
            for name, entry in self.cells
        }
        changes = [
            change(
                entry, values[before, entry.name], values[name, entry.name],
                self.results_folder((before, entry)), self.results_folder((name, entry)),
            )
            for before, name in pairwise(self.models)
            for entry in self.entries
        ]  # fmt: skip
        reportable = self.options.limit is None
        return Report(str(self.file), self.models, self.entries, list(values.values()), changes, reportable)

    def show(self, report: Report) -> None:
        show(report, Console())

    def write(self, report: Report) -> None:
        write(report, self.folder)


def first_alike(entries: Sequence[Entry]) -> dict[str, Entry]:
    """By name of an entry the first that asks for the same measurement: it is made once, whatever figures are read."""
    first: dict[str, Entry] = {}
    for entry in entries:
        key = (entry.command, entry.options, entry.items)
        alike = (home for home in first.values() if (home.command, home.options, home.items) == key)
        first[entry.name] = next(alike, entry)
    return first


def measure(entry: Entry, name: str, path: str, output: Path, options: SuiteArguments) -> None:
    """One entry on one model, in a folder of its own; what was measured there before is not made again."""
    others = {"trust_remote_code": options.trust_remote_code, "dry_run": options.dry_run}
    try:
        arguments = entry.arguments(path, output / name / entry.name, options.limit, **others)
        with redirect_stdout(sys.stdout if options.dry_run else io.StringIO()):  # its table is a row of ours
            runner.run(entry.task, arguments)
    except UserError as error:
        raise UserError(f"{name}, {entry.name}: {error}") from error


def read_value(entry: Entry, name: str, folder: Path) -> Value:
    """The entry's figure as its command left it. Raises UserError where its results have no such figure."""
    record, items = read_results(folder)
    _check(entry, "group", entry.group, {"", *record["groups"]})
    part = record["groups"][entry.group] if entry.group else record
    _check(entry, "figure", entry.figure, part["scores"])
    _check(entry, "paired", entry.paired or entry.figure, {score for item in items for score in item.scores})
    bounds = part["intervals"][entry.figure]
    return Value(
        name, entry.name, part["scores"][entry.figure], tuple(bounds) if bounds else None, part["n"]["items"],
        None if entry.group else (record["details"].get("type_guess") or {}).get(entry.figure),
    )  # fmt: skip


def _check(entry: Entry, key: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        names = ", ".join(sorted(filter(None, known)))
        what = " (a score of the items)" if key == "paired" else ""
        raise UserError(
            f"entry {entry.name!r}: {key} {value!r} is not in its results.{did_you_mean(value, known)} "
            f"Give one of{what}: {names}."
        )


# --- stage against stage --------------------------------------------------------------------------------------------


def change(entry: Entry, before: Value, after: Value, first: Path, second: Path) -> Change:
    """A model against the one before it, on the same items; `first` and `second` are their folders of results."""
    score = entry.paired or entry.figure
    known = before.value is not None and after.value is not None
    difference = after.value - before.value if known else None
    try:
        pairs = compare_folders(first, second)["comparisons"]
    except UserError as error:  # tokenizers that cut a text into other windows
        return Change(before.model, after.model, entry.name, difference, score, None, "", str(error))
    row = next((row for row in pairs if (row["group"], row["score"]) == (entry.group, score)), None)
    interval = row["interval"] if row else None
    side = verdict(difference, interval, entry.higher_is_better)
    return Change(before.model, after.model, entry.name, difference, score, interval, side)


def verdict(difference: float | None, interval: tuple[float, float] | None, higher_is_better: bool) -> str:
    """GAINED or LOST where the interval lies on the difference's side of 0, else "".

    >>> verdict(-0.2, (-0.3, -0.1), higher_is_better=False), verdict(2.0, (-0.5, 4.5), higher_is_better=True)
    ('gained', '')
    """
    if difference is None or interval is None:
        return ""
    up, down = difference > 0 and interval[0] > 0, difference < 0 and interval[1] < 0
    return (GAINED if up == higher_is_better else LOST) if up or down else ""


# --- what is written ------------------------------------------------------------------------------------------------


def write(report: Report, output: Path) -> None:
    """suite.md, report.html, and suite.json last."""
    made = provenance()
    results.write(output / TABLE, markdown(report), TASK)
    results.write(output / REPORT, page(report, [report.suite, *made_by(made)]), TASK)
    for entry in report.entries:
        for name in report.models:
            link_back(output / name / entry.name / REPORT, f"eval {entry.command}", output / REPORT)
    declared = [{key: value for key, value in asdict(entry).items() if key != "meaning"} for entry in report.entries]
    record = {**asdict(report), "suite_hash": results.fingerprint(declared), **made}
    results.write(output / RESULTS, json.dumps(as_json(record), indent=2, ensure_ascii=False) + "\n", TASK)
