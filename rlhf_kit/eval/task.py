"""What an evaluation task is: rows, what a model is asked of them, and what its answers are worth (評測任務).

A task is a subclass of `Task` with an options dataclass, in one file; `runner.run` does everything else: it checks,
loads the model only if something is left to ask, keeps item by item, resumes and reports, on several processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.formats import SHOWN
from rlhf_kit.errors import UserError
from rlhf_kit.eval import results
from rlhf_kit.eval.intervals import Figure
from rlhf_kit.eval.items import Item, Results, Settings, percentages
from rlhf_kit.models.checkpoints import load_config, load_tokenizer
from rlhf_kit.models.forward import context_length
from rlhf_kit.models.identity import model_hash
from rlhf_kit.terminal.console import Console


@dataclass
class EvalArguments:
    """What every task has."""

    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for results.json and items.jsonl; an interrupted run resumes there. 輸出資料夾"},
    )
    limit: int | None = field(
        default=None, metadata={"help": "The first N rows only: a trial, not a result. 只評前 N 筆"}
    )
    max_batch_tokens: int = field(default=8192, metadata={"help": "Bounds the memory; changes no result. 記憶體上限"})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Type of the weights. 數值精度"}
    )
    seed: int = field(default=0, metadata={"help": "Of all random draws and of the intervals. 亂數種子"})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with a hub model. 執行模型自帶的程式碼"}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Check everything, show the plan, load no weights, write nothing. 只檢查"}
    )


@dataclass
class TaskArguments(EvalArguments):
    """What a task of one model and one data set has."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A causal language model: folder or hub id. 模型", "required": True}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Test data: file, folder or hub id. 測試資料", "required": True}
    )
    split: str = field(default="test", metadata={"help": "Split of a folder or a hub dataset. 資料的分割"})


@dataclass
class ShotArguments(TaskArguments):
    """What a task with demonstrations in its prompt has besides."""

    split: str = field(default="validation", metadata={"help": "Split of a folder or a hub dataset. 資料的分割"})
    apply_chat_template: bool = field(
        default=False, metadata={"help": "Ask in turns, as SFT teaches, not in plain text. 以對話格式提問"}
    )
    shots: int = field(default=0, metadata={"help": "Demonstrations in the prompt. 示範數"})
    demonstrations: str | None = field(
        default=None,
        metadata={"help": "Where demonstrations come from (its split train). Default: the data. 示範的來源"},
    )


class Task(ABC):
    """One measurement of one model.

    A subclass sets `name`, `protocol` (how the task is put), `version` (raised when the same protocol gives other
    outputs) and `Arguments`, and writes `read`, `prepare` and `ask`.
    """

    name: ClassVar[str]
    protocol: str
    version: ClassVar[int] = 1
    unit: ClassVar[str] = "items"  # what the progress counts
    files: ClassVar[Sequence[str]] = ()  # what `write` writes
    Arguments: ClassVar[type[TaskArguments]] = TaskArguments

    def __init__(self, options: Any):
        self.options = options
        self.rows = self.read()[: options.limit]

    @abstractmethod
    def read(self) -> Sequence[Any]:
        """All rows, checked in full. Raises UserError with all faults."""

    @abstractmethod
    def prepare(self) -> Sequence[str]:
        """The ids of the items in the data's order; nothing but weights is missing for `ask` after it.

        Raises UserError with all that cannot be asked.
        """

    def each(self, make: Callable[[Any], Any], noun: str, names: Iterable[Any]) -> list[Any]:
        """What `make` makes of every row. Raises UserError with all rows that it refuses, by noun and name."""
        made, faults = [], []
        for name, row in zip(names, self.rows, strict=False):
            try:
                made.append(make(row))
            except UserError as error:
                faults.append(f"{noun} {name}: {error}")
        if faults:
            more = f" ... and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
            source = self.options.dataset_name
            raise UserError(f"{source}: {' '.join(faults[:SHOWN])}{more} Take such {noun}s out.")
        return made

    @abstractmethod
    def ask(self, model: PreTrainedModel, ids: Sequence[str]) -> Iterator[Item]:
        """The scored items of these ids, in any order."""

    def shares(self, ids: Sequence[str]) -> Sequence[str]:
        """Of each id, what one process must make in one go, such as its story."""
        return ids

    def figures(self, items: Sequence[Item], clusters: NDArray) -> Mapping[str, Figure]:
        """What is reported of all items, and of each group. clusters: (N,)."""
        return percentages(items, clusters)

    def details(self, items: Sequence[Item]) -> Mapping[str, Any]:
        """Anything else of the whole run. JSON values."""
        return {}

    def show(self, results: Results) -> None:
        """Print the figures with their intervals, a line each."""
        console = Console()
        parts = [("", results.measured), *results.groups.items()]
        for group, measured in parts if len(parts) > 2 else parts[:1]:
            if group:
                console.print(f"{group} ({measured.n['items']})")
            for name, value in measured.scores.items():
                interval = measured.intervals[name]
                bounds = f"  ({_rounded(interval[0])} to {_rounded(interval[1])})" if interval else ""
                console.print(f"{name:>20}  {_rounded(value)}{bounds}")
        if not results.reportable:
            console.print("--limit was given: no result to report. 只評了一部分，不可當成結果。", soft_wrap=True)

    def write(self, items: Sequence[Item]) -> None:  # noqa: B027, most tasks have no such files
        """Write `files` into the output folder."""

    def settings(self) -> Mapping[str, Any]:
        """What else the outputs depend on, recorded in `settings.json`. JSON values."""
        return {"dtype": self.options.dtype}

    @property
    def record(self) -> Settings:
        """All that decides the outputs."""
        options = self.options
        rows = [asdict(row) if is_dataclass(row) else row for row in self.rows]
        return Settings(
            self.name, self.protocol, self.version, options.model_name_or_path, model_hash(options.model_name_or_path),
            options.dataset_name, results.fingerprint(rows), options.seed, options.limit, self.settings(),
        )  # fmt: skip

    @property
    def source_of_shots(self) -> str | None:
        """None without shots. Raises UserError for the file that is measured, and for demonstrations of no use."""
        options = self.options
        if options.shots == 0:
            if options.demonstrations is not None:
                raise UserError("--demonstrations needs --shots K, the number of them.")
            return None
        if options.demonstrations is None and Path(options.dataset_name).is_file():
            raise UserError(
                f"--shots {options.shots}: {options.dataset_name!r} is the file that is measured. Give others "
                "to learn from by --demonstrations, such as the training split's file."
            )
        return options.demonstrations or options.dataset_name

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.options.model_name_or_path)

    @cached_property
    def context(self) -> int | None:
        """Tokens that the model reads at once; None = any number."""
        return context_length(load_config(self.options.model_name_or_path, what="a causal language model"))


def _rounded(value: float) -> str:
    return f"{value:.2f}" if value < 1e6 else f"{value:.2e}"
