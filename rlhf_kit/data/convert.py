"""`rlhf-kit convert`: rankings from one format to another, several labelers' rankings merged on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_kit.data import labels
from rlhf_kit.data.groups import Row
from rlhf_kit.data.interchange import CONVERT, FORMATS, WRITABLE, read, write, write_records
from rlhf_kit.data.labelers import METHODS, Agreement, agreement, merge
from rlhf_kit.data.labels import EXAMPLE, MODES, NORMAL
from rlhf_kit.data.loading import load
from rlhf_kit.data.messages import content_text
from rlhf_kit.errors import UserError
from rlhf_kit.options import option
from rlhf_kit.references import imported
from rlhf_kit.storage import Folder
from rlhf_kit.terminal import say

OF_A_STORE = ("thumbs", "best")  # what is written of one, and put into one, besides rankings


@dataclass
class ConvertOptions:
    dataset_name: str | None = option(
        None, "A .jsonl, .json, .csv or .parquet file, or a store of labels. 輸入", positional="IN", required=True
    )
    output_file: str | None = option(
        None,
        "A .jsonl or .json file; one that convert wrote is replaced. Or a store, to add to. 輸出",
        positional="OUT",
        required=True,
    )
    source_format: str | None = option(
        None,
        "The format of IN, if it is a file; best: demonstrations, each a thumb up. 輸入格式",
        short="from",
        choices=(*FORMATS, *OF_A_STORE),
    )
    task_mode: str = option(
        "normal",
        "Into a store: labels, or tasks with known answers: gold to check labelers, example to practise on. 題目種類",
        choices=MODES,
    )
    target_format: str = option(
        "ranked",
        "The format of OUT, if it is a file; thumbs and best are of a store. 輸出格式",
        short="to",
        choices=(*WRITABLE, *OF_A_STORE),
    )
    sides: tuple[str, str] | None = option(
        None, "The fields that Label Studio's Pairwise showed on the left and on the right. 左右兩邊的欄位"
    )
    merge: str | None = option(
        None, "Merge all labelers' rankings of a prompt into one. 合併多位標註者的排序", choices=METHODS
    )
    anonymise: bool = option(False, "Of a store: numbers in place of labelers' names, no comments. 去識別化")
    data_card: Path | None = option(None, "Of a store: a Markdown file of its counts and agreement. 資料卡")


def run(options: ConvertOptions) -> None:
    """`rlhf-kit convert`. Raises UserError, and nothing was written."""
    stores = labels.is_store(options.dataset_name), labels.is_store(options.output_file)
    _check(options, *stores)
    if stores[0]:
        say("\n".join(exported(options)))
    elif stores[1]:
        say("\n".join(added(options)))
    else:
        files, formats = (options.dataset_name, options.output_file), (options.source_format, options.target_format)
        say("\n".join(convert(*map(Path, files), *formats, options.merge, options.sides)))


def _check(options: ConvertOptions, from_store: bool, to_store: bool) -> None:
    """Raises UserError with all that does not go together."""
    faults = []
    if from_store and to_store:
        faults.append("IN and OUT are both stores; give a file for one of them")
    if not from_store:
        faults += [f"--{name} is of a store" for name in ("anonymise", "data_card") if getattr(options, name)]
        faults += ["give the format of IN by --from"] if options.source_format is None else []
        of_a_store = options.source_format in OF_A_STORE and not to_store
        faults += [f"--from {options.source_format} goes into a store"] if of_a_store else []
        faults += [f"--to {options.target_format} is of a store"] if options.target_format in OF_A_STORE else []
    elif options.merge and options.target_format in OF_A_STORE:
        faults.append(f"--merge is of rankings, and --to {options.target_format} has none")
    if options.task_mode != NORMAL:
        faults += [] if to_store and not from_store else [f"--task_mode {options.task_mode} goes into a store"]
        if options.task_mode == EXAMPLE and options.source_format in OF_A_STORE:
            faults.append(f"an example is a ranking, and --from {options.source_format} has none")
    if from_store and options.source_format is not None:
        faults.append("a store has no --from")
    if faults:
        raise UserError(f"{'; '.join(faults)}.")


def exported(options: ConvertOptions) -> list[str]:
    """Write a file, and a data card, of a store; returns what to say of it. Raises UserError."""
    target, card = Path(options.output_file), options.data_card
    for name, path in (("OUT", target), ("--data_card", card)):
        if path is not None:
            Folder(path.parent, CONVERT).check_file(path.name, name, Path(options.dataset_name), "IN")
    opened, files = (
        imported(f"rlhf_kit.data.labels.{name}", "feedback") for name in ("store:open_store", "export:Files")
    )
    files = files(opened(options.dataset_name), options.anonymise, options.merge)
    records = files.records(options.target_format)
    write_records(records, target)
    lines = [f"{target}: {len(records)} records written ({options.target_format})"]
    if card is not None:
        Folder(card.parent, CONVERT).write(card.name, files.data_card())
        lines.append(f"{card}: data card 資料卡")
    return lines


def added(options: ConvertOptions) -> list[str]:
    """Add a file's labels to a store; returns what to say of it. Raises UserError."""
    rows, left_out = _labels(options)
    if options.task_mode != NORMAL:
        adding, more, what = "add_known", (options.task_mode,), "tasks"
    else:
        adding, more, what = "add_thumbs" if options.source_format in OF_A_STORE else "add_rankings", (), "labels"
    opened, add = (
        imported(f"rlhf_kit.data.labels.{name}", "feedback") for name in ("store:open_store", f"importing:{adding}")
    )
    new = add(opened(options.output_file, create=True), rows, *more)
    there = f", {len(rows) - new} were there" if new < len(rows) else ""
    return [
        f"{options.dataset_name}: {len(rows)} {what} read ({options.source_format})",
        *_left_out(left_out),
        f"{options.output_file}: {new} added{there}",
    ]


def _labels(options: ConvertOptions) -> tuple[list[Row], dict[str, int]]:
    """(rankings or thumbs of a file, how many records were left out by reason). Raises UserError."""
    if options.source_format == "thumbs":
        return list(load(options.dataset_name, ("thumbs",))[0]), {}
    if options.source_format == "best":
        return [_liked(row) for row in load(options.dataset_name, ("demonstrations",))[0]], {}
    more = ("explanation",) if options.task_mode == EXAMPLE else ()
    rows, left_out = read(options.dataset_name, options.source_format, options.sides, more)
    return (merge(rows, options.merge) if options.merge else rows), left_out


def _liked(row: Mapping[str, Any]) -> Row:
    """A demonstration as a thumb up for its last answer. Raises UserError for one of tools, which a store has not."""
    if "messages" not in row:
        return {**row, "label": True}
    if row.get("tools") or any(turn.get("tool_calls") for turn in row["messages"]):
        raise UserError("A demonstration has tools, which a store of labels cannot keep; remove these rows.")
    turns = [{"role": turn["role"], "content": content_text(turn["content"])} for turn in row["messages"]]
    end = max(at for at, turn in enumerate(turns) if turn["role"] == "assistant")
    return {"prompt": turns[:end], "completion": turns[end]["content"], "label": True}


def convert(
    source: Path,
    target: Path,
    source_format: str,
    target_format: str,
    method: str | None,
    sides: tuple[str, str] | None = None,
) -> list[str]:
    """Read `source` (a Pairwise's by its `sides`), merge by `method` unless it is None, write `target`; returns what
    to say of it.

    Raises UserError for what cannot be read or written.
    """
    Folder(target.parent, CONVERT).check_file(target.name, "OUT", source, "IN")
    rows, left_out = read(source, source_format, sides)
    lines = [f"{source}: {_rankings(len(rows))} read ({source_format})", *_left_out(left_out)]
    lines += _agreement(agreement(rows))
    if method is not None:
        rows = merge(rows, method)
        lines.append(f"merged 合併 ({method}): {_rankings(len(rows))}")
    left_out = write(rows, target, target_format)
    written = len(rows) - sum(left_out.values())
    return [*lines, f"{target}: {_rankings(written)} written ({target_format})", *_left_out(left_out)]


def _rankings(count: int) -> str:
    return f"{count} ranking{'' if count == 1 else 's'} 筆排序"


def _left_out(counts: Mapping[str, int]) -> list[str]:
    return [f"  left out 略過 {count}: {reason}" for reason, count in counts.items()]


def _agreement(found: Agreement) -> list[str]:
    """Nothing to say where no two labelers ranked one prompt."""
    if found.agreement is None:
        return []
    line = (
        f"labelers 標註者: {found.labelers} ranked {found.prompts} of the prompts together; two of them agree on "
        f"{found.agreement:.1%} of {found.pairs} comparisons 一致率"
    )
    if found.ceiling is None:
        return [line, "  below chance: does one of them rank in the reverse order? 低於隨機，順序可能相反"]
    return [line, f"  at most {found.ceiling:.1%} can be reached against one labeler 準確率上限"]
