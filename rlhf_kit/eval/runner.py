"""How every task is run: read, check, load only if something is left, ask, keep item by item, summarise, show, write.

A table of measurements is run cell by cell.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from rlhf_kit.errors import UserError
from rlhf_kit.eval import results
from rlhf_kit.eval.items import Results, Run
from rlhf_kit.eval.tables import TableTask
from rlhf_kit.eval.task import NOTHING_DONE, LaunchArguments, Task, planned
from rlhf_kit.models.revisions import pin
from rlhf_kit.processes import processes, quiet, refuse_unlaunched
from rlhf_kit.terminal import say


def run(kind: type[Task] | type[TableTask], options: Any) -> dict[str, Results]:
    """Run a task with its options: results by model; none on all processes but the main one, of a dry run or a table.

    Raises UserError.
    """
    quiet()
    if isinstance(options, LaunchArguments):
        refuse_unlaunched(options.accelerate)
    options = replace(options)
    if issubclass(kind, Task):
        pin(options, kind.baselines)
    with planned(kind.name, options.dry_run):
        task = kind(options)
        if isinstance(task, TableTask):
            fill(task)
            return {}
        if not options.dry_run:
            return measure(task)
        say(plan(task))
    return {}


def measurements(task: Task) -> list[tuple[Task, Run]]:
    """The task of each model, and its items as far as they were made.

    Checked in full; nothing is written yet. Raises UserError.
    """
    task.check()
    under_way = []
    for part in task.of_models():
        under_way.append((part, begun(part, processes())))
    return under_way


def begun(task: Task, state: PartialState) -> Run:
    """The items of a task of one model as far as they were made. Raises UserError."""
    ids = task.prepare()
    return Run(task.folder, task.record, ids, state, task.unit, task.shares(ids), task.files)


def measure(task: Task) -> dict[str, Results]:
    """Ask what is left, and report. Raises UserError before weights are loaded where that can be known."""
    measured = {part.model: finished(part, under_way) for part, under_way in measurements(task)}
    if not processes().is_main_process:
        return {}
    task.report(measured)
    if task.folder is not None:
        say(f"Written 已寫入: {task.folder}/{', '.join(task.written)}")
    return measured


def finished(task: Task, under_way: Run) -> Results | None:
    """Ask what is left, sum up and write. None on all processes but the main one."""
    model = None
    if under_way.resumed < len(under_way.ids):
        model = task.load(under_way.state.device)
    with under_way:
        for item in task.ask(model, under_way.todo) if under_way.todo else ():
            under_way.add(item)
    results = under_way.finish(task.figures, task.details, task.counted)
    if results is not None and task.folder is not None:
        task.write(results, under_way.ordered)
    return results


def plan(task: Task) -> str:
    """What a run would do, after all its checks. Raises UserError."""
    lines = []
    for part, under_way in measurements(task):
        record, count = under_way.settings, len(under_way.ids)
        lines.append(
            f"{record.task} ({record.protocol}, version {record.version}): {count} {part.unit} of {len(part.rows)} "
            f"rows of {record.data} on {record.model}; {under_way.resumed} done already."
        )
    return "\n".join([*lines, NOTHING_DONE])


def fill(table: TableTask) -> None:
    """Make the cells of a table that are left, and report; of a dry run the plan. Raises UserError."""
    state, kept = processes(), table.folder is not None
    if not kept and state.num_processes > 1:
        raise UserError("Several processes keep their items in files: give a folder by --output_dir.")
    with tempfile.TemporaryDirectory() as scratch:
        table.folder = table.folder or Path(scratch)
        results.of(table.folder, table.name).check("--output_dir", table.files)
        table.done = [cell for cell in table.cells if table.is_finished(cell)]
        if table.options.dry_run:
            table.plan()
            return
        table.begin()
        for cell in [cell for cell in table.cells if cell not in table.done]:
            table.make(cell)
            table.done.append(cell)
            if state.is_main_process:
                table.after(cell)
        if not state.is_main_process:
            return
        report = table.report()
        table.show(report)
        if kept:
            table.write(report)
            say(f"Written 已寫入: {table.folder}/{', '.join(table.files)}, {table.beside}")
