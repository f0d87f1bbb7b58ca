"""What the policy says while it learns: some completions shown, all of them kept in parquet (`log_completions`)."""

from __future__ import annotations

from pathlib import Path

import pandas
from accelerate.utils import gather_object
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_kit.ppo.rollout import Rollout
from rlhf_kit.storage import RUN, Folder
from rlhf_kit.terminal.console import Console

console = Console(stderr=True)


def table_of(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict], rollout: Rollout, scores: Tensor, parts: dict[str, Tensor]
) -> list[dict]:
    """One row a completion, those of all processes: prompt (its last turn), completion, score, each reward's own."""
    columns = {"score": scores.tolist()} | {f"rewards/{name}": part.tolist() for name, part in parts.items()}
    prompts = [row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"] for row in rows]
    table = {"prompt": prompts, "completion": rollout.texts(tokenizer)} | columns
    return gather_object([dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)])


def write(rows: list[dict], folder: str | Path, step: int) -> Path:
    """`folder`/completions/completions_STEP.parquet, the names of TRL's GRPO."""
    content = pandas.DataFrame([{"step": step, **row} for row in rows]).to_parquet()
    return Folder(Path(folder), RUN).write(f"completions/completions_{step:05d}.parquet", content)


def show(rows: list[dict], step: int, count: int) -> None:
    table = Table(title=f"step {step}", title_justify="left", show_lines=True)
    for title in ("prompt 題目", "completion 回答", "score 分數"):
        table.add_column(title, overflow="fold")
    for row in rows[:count]:
        table.add_row(row["prompt"], row["completion"] or "(nothing 空白)", f"{row['score']:.2f}")
    console.print(table)
