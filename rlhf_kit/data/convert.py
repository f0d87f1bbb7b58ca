"""`rlhf-kit convert`: rankings from one format to another, several labelers' rankings merged on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf_kit.data.interchange import CONVERT, FORMATS, WRITABLE, read, write
from rlhf_kit.data.labelers import METHODS, Agreement, agreement, merge
from rlhf_kit.options import option
from rlhf_kit.storage import Folder
from rlhf_kit.terminal import say


@dataclass
class ConvertOptions:
    dataset_name: Path | None = option(
        None, "A .jsonl, .json, .csv or .parquet file. 輸入", positional="IN", required=True
    )
    output_file: Path | None = option(
        None, "A .jsonl or .json file; one that convert wrote is replaced. 輸出", positional="OUT", required=True
    )
    source_format: str | None = option(
        None, "The format of IN. 輸入格式", short="from", choices=FORMATS, required=True
    )
    target_format: str = option("ranked", "The format of OUT. 輸出格式", short="to", choices=WRITABLE)
    sides: tuple[str, str] | None = option(
        None, "The fields that Label Studio's Pairwise showed on the left and on the right. 左右兩邊的欄位"
    )
    merge: str | None = option(
        None, "Merge all labelers' rankings of a prompt into one. 合併多位標註者的排序", choices=METHODS
    )


def run(options: ConvertOptions) -> None:
    """`rlhf-kit convert`. Raises UserError, and nothing was written."""
    files, formats = (options.dataset_name, options.output_file), (options.source_format, options.target_format)
    say("\n".join(convert(*files, *formats, options.merge, options.sides)))


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
