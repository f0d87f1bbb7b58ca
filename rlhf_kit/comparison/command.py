"""`rlhf-kit compare-methods --config X.yaml`: every method, strength and seed, and one table of them all."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_kit.comparison.cells import MODEL, Maker
from rlhf_kit.comparison.config import CompareOptions, read_entries, start_model
from rlhf_kit.comparison.figures import BEFORE, Values, gaps, sentences
from rlhf_kit.comparison.making import Making
from rlhf_kit.comparison.methods import Entry
from rlhf_kit.comparison.page import Report, markdown, page, show
from rlhf_kit.comparison.records import COMMAND, START
from rlhf_kit.errors import UserError
from rlhf_kit.launched import process_count
from rlhf_kit.pages.shell import REPORT, link_back, write_page
from rlhf_kit.processes import quiet
from rlhf_kit.stages.output import RECORD
from rlhf_kit.storage import Folder, as_json
from rlhf_kit.terminal import say
from rlhf_kit.terminal.console import Console
from rlhf_kit.versions import made_by, provenance

TITLE = "Methods side by side 方法比較"
TABLE, RESULTS = "table.md", "comparison.json"
FILES = (TABLE, REPORT, RESULTS)


def run(options: CompareOptions) -> int:
    """Returns the exit status: 1 where a cell came to no end. Raises UserError."""
    quiet()
    if not hasattr(os, "fork") or process_count() > 1:
        raise UserError(
            f"{COMMAND} starts its processes itself, by fork: on Linux or macOS, and not under a launcher."
        )
    entries = read_entries(options)
    files = Folder(Path(options.output_dir), COMMAND)
    files.check("--output_dir", FILES)
    files.check_lock()
    making = Making(options, entries)
    if options.dry_run:
        say(plan(making))
        return 0
    files.lock()
    maker = Maker(making.count)
    try:
        files.remove(RESULTS)  # from here on the folder holds an unfinished table
        with maker.closing:
            values = Values(making.each(maker))
        if BEFORE not in values.by_key:
            raise UserError(f"No start model could be made or measured: {next(iter(maker.failed.values()))}")
        report = report_of(making, entries, values, maker)
        show(report, Console())
        write(report, files)
    finally:
        files.unlock()
    say(f"Written 已寫入: {files.path}/{', '.join(FILES)}, a folder a method")
    return 1 if maker.failed else 0


def report_of(making: Making, entries: list[Entry], values: Values, maker: Maker) -> Report:
    keys = [BEFORE, *((entry.name, strength) for entry in entries for strength in entry.strengths)]
    rows = [values.row(key) for key in keys if key in values.by_key]
    between = gaps(values, entries)
    claims = sentences(values, entries, making.options.tax, between)
    accuracy = None
    if making.options.truth_rankings is not None and making.options.rankings is not None:
        record = json.loads((making.folder / START / "judge" / MODEL / RECORD).read_text(encoding="utf-8"))
        accuracy = record["metrics"].get("eval_accuracy")
    parts = (tuple(entries), tuple(rows), tuple(claims), between, dict(maker.failed))
    return Report(making.options, *parts, making.asked, accuracy)


def plan(making: Making) -> str:
    """What a run would make."""
    options = making.options
    lines = [
        f"Plan of {COMMAND}: {making.count} processes at most, {making.asked} held-out prompts, "
        f"seeds {', '.join(map(str, options.seeds))}."
    ]
    lines += [f"  start: {start_model(options)}" + (", then sft" if options.sft is not None else "")]
    for entry in making.entries:
        strengths = ", ".join(f"{strength:g}" for strength in entry.strengths)
        lines.append(f"  {entry.name}: {entry.method.strength} {strengths}")
    return "\n".join([*lines, "Dry run: nothing was loaded or written. 只檢查，未執行。"])


def write(report: Report, files: Folder) -> None:
    """table.md, report.html, and comparison.json last."""
    made = provenance()
    files.write(TABLE, markdown(report))
    write_page(files, REPORT, page(report, made_by(made)))
    link_back(files.path.parent / REPORT, "demo", files.path / REPORT, f"→ {TITLE}")  # where it lies in a demo's
    files.write(RESULTS, json.dumps(as_json(record(report) | made), indent=2, ensure_ascii=False) + "\n")


def record(report: Report) -> dict[str, Any]:
    """What `comparison.json` holds."""
    options = {
        name: value if isinstance(value, list | dict | int | float | None) else str(value)
        for name, value in asdict(report.options).items()
    }
    return {
        "options": options,
        "rows": [asdict(row) for row in report.rows],
        "sentences": [list(pair) for pair in report.sentences],
        "gaps": [{"of": of, "less": less, **asdict(gap)} for (of, less), gap in report.gaps.items()],
        "failed": dict(report.failed),
        "heldout_prompts": report.asked,
        "judge_accuracy": report.accuracy,
    }
