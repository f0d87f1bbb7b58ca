"""Multiple choice: rows of `question`, `choices` and `labels`, or as the hub has `truthful_qa`; checked in full."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_kit.data import sources
from rlhf_kit.data.faults import describe, is_list
from rlhf_kit.data.formats import report
from rlhf_kit.errors import UserError


def read_choices(source: str, split: str) -> list[dict[str, Any]]:
    """Rows of `question`, and of `mc1` and `mc2` as {choice: whether it is true}. Raises UserError with all faults."""
    if source.partition(":")[0] == sources.WORLD:
        raise UserError(
            "The embedded world has no multiple-choice questions. Give a file, a folder or a hub id with "
            "--dataset_name."
        )
    table = sources.read(source, ("choices",), split, 0)
    rows = zip(table.context.numbers_of(table.rows), table.rows, strict=True)
    faults = [*table.context.faults, *((number, fault) for number, row in rows for fault in faults_of(row))]
    if faults or not table.rows:
        raise report(table.name, faults or [(0, "it has no rows")], len(table.rows), table.context.unit)
    return [{"question": row["question"].strip()} | targets(row) for row in table.rows]


def targets(row: Mapping[str, Any]) -> dict[str, dict[str, bool]]:
    parts = {name: row.get(f"{name}_targets", row.get("mc1_targets", row)) for name in ("mc1", "mc2")}
    return {name: dict(zip(part["choices"], map(bool, part["labels"]), strict=True)) for name, part in parts.items()}


def faults_of(row: Any) -> Iterator[str]:
    if not isinstance(row, Mapping) or not isinstance(row.get("question"), str) or not row["question"].strip():
        yield f"`question` must be a string; got {describe(row.get('question') if isinstance(row, Mapping) else row)}"
        return
    for name in [name for name in ("mc1_targets", "mc2_targets") if name in row] or [""]:
        part = row[name] if name else row
        choices, labels = (part.get(key) if isinstance(part, Mapping) else None for key in ("choices", "labels"))
        where = f"`{name}`: " if name else ""
        if not is_list(choices) or not all(isinstance(each, str) and each.strip() for each in choices):
            yield f"{where}`choices` must be a list of non-empty strings; got {describe(choices)}"
        elif len({*choices}) < len(choices):
            yield f"{where}a choice appears twice"
        elif not is_list(labels) or len(labels) != len(choices) or any(label not in (0, 1) for label in labels):
            yield f"{where}`labels` must be a list of {len(choices)} values, 0 or 1, one for each choice"
        elif not 0 < sum(labels) < len(labels):
            yield f"{where}`labels` must mark at least one choice as true (1) and one as false (0)"
