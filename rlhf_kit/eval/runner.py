"""How every task is run: read, check, load only if something is left, ask, keep item by item, sum up, show, write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_kit.errors import HubUnreachableError
from rlhf_kit.eval.items import Results, Run
from rlhf_kit.eval.revisions import pin
from rlhf_kit.eval.task import Task
from rlhf_kit.generation.generators import load_generator
from rlhf_kit.processes import processes, quiet
from rlhf_kit.terminal import say


def run(kind: type[Task], options: Any) -> Results | None:
    """Run a task with its options; None on all processes but the main one, and of a dry run. Raises UserError."""
    quiet()
    options = replace(options)
    pin(options)
    if not options.dry_run:
        return measure(kind(options))
    try:
        say(plan(kind(options)))
    except HubUnreachableError as error:
        say(f"{kind.name}: the options are right; the rest was not checked, as the hub cannot be reached: {error}")
    return None


def measurement(task: Task) -> Run:
    """A task's items as far as they were made, checked in full; nothing is written yet. Raises UserError."""
    ids = task.prepare()
    folder = None if task.options.output_dir is None else Path(task.options.output_dir)
    return Run(folder, task.record, ids, processes(), unit=task.unit, shares=task.shares(ids), files=task.files)


def measure(task: Task) -> Results | None:
    """Ask what is left, and report. Raises UserError before weights are loaded where that can be known."""
    under_way = measurement(task)
    model = None
    if under_way.todo:
        model, _ = load_generator(task.options.model_name_or_path, task.options.dtype, under_way.state.device)
    with under_way:
        for item in task.ask(model, under_way.todo) if under_way.todo else ():
            under_way.add(item)
    results = under_way.finish(task.figures, task.details)
    if results is None:
        return None
    task.show(results)
    if under_way.folder is not None:
        task.write(under_way.ordered)
        say(f"Written 已寫入: {under_way.folder}/{', '.join(('results.json', 'items.jsonl', *task.files))}")
    return results


def plan(task: Task) -> str:
    """What a run would do, after all its checks. Raises UserError."""
    under_way = measurement(task)
    record, count = under_way.settings, len(under_way.ids)
    return (
        f"{record.task} ({record.protocol}, version {record.version}): {count} {task.unit} of {len(task.rows)} rows "
        f"of {record.data}, asked of {record.model}; {under_way.resumed} are there already.\n"
        f"Dry run: no weights were loaded, nothing was written. 只檢查，未評測。"
    )
