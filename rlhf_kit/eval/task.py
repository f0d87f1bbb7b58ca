"""What an evaluation task is: rows, what a model is asked about them, and how its answers are scored (評測任務).

A task is a subclass of `Task` with an options dataclass, in one file; `runner.run` does everything else: it checks,
loads the model only if something is left to ask, keeps item by item, resumes and reports, on several processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.formats import SHOWN
from rlhf_kit.errors import HubUnreachableError, UserError
from rlhf_kit.eval import results
from rlhf_kit.eval.items import Item, Results, Settings, percentages
from rlhf_kit.generation.generators import check_generators, folders, load_generator
from rlhf_kit.intervals import Figure
from rlhf_kit.models.checkpoints import load_config, load_tokenizer
from rlhf_kit.models.forward import context_length
from rlhf_kit.models.identity import model_hash
from rlhf_kit.options import option
from rlhf_kit.terminal import say
from rlhf_kit.terminal.console import Console

NOTHING_DONE = "Dry run: no weights were loaded, nothing was written. 只檢查，未評測。"


@contextmanager
def planned(name: str, dry_run: bool) -> Iterator[None]:
    """Around a measurement: in a dry run a hub that cannot be reached is named, and is no fault."""
    try:
        yield
    except HubUnreachableError as error:
        if not dry_run:
            raise
        say(f"{name}: the options are valid; the rest was not checked, because the hub cannot be reached: {error}")


@dataclass
class OutputArguments:
    """What every measurement has."""

    output_dir: str | None = option(None, "Folder for the results; an interrupted run resumes there. 輸出資料夾")
    limit: int | None = option(None, "Only the first N rows: a trial, not a result. 只評前 N 筆")
    trust_remote_code: bool = option(False, "Run code that comes with a hub model. 執行模型自帶的程式碼")
    dry_run: bool = option(False, "Check everything, show the plan, load no weights, write nothing. 只檢查")


@dataclass
class BatchArguments(OutputArguments):
    """What a measurement that runs models in batches has."""

    max_batch_tokens: int = option(8192, "Tokens per batch: limits memory, does not change results. 記憶體上限")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "Type of the weights. 數值精度")


@dataclass
class LaunchArguments:
    """What a measurement that trains has besides."""

    accelerate: str | None = option(
        None,
        "Run on several devices, each with the whole model, by the name of a configuration (cpu, cpu-2, single-gpu, "
        "ddp) or by a YAML of accelerate's. Default: this process alone. 在多個裝置上執行",
    )


@dataclass
class EvalArguments(BatchArguments):
    """What every task has."""

    seed: int = option(0, "Seed of all random draws and of the intervals. 亂數種子")


@dataclass
class ModelsArguments(EvalArguments):
    """What a task of several models has."""

    models: list[str] = option([], "Causal language models: folders or hub ids. 模型", required=True, whole=True)


@dataclass
class TaskArguments(EvalArguments):
    """What a task of one model and one data set has."""

    model_name_or_path: str | None = option(None, "A causal language model: folder or hub id. 模型", required=True)
    dataset_name: str | None = option(None, "Test data: file, folder or hub id. 測試資料", required=True)
    split: str = option("test", "Split of a folder or a hub dataset. 資料的分割")


@dataclass
class ShotArguments(TaskArguments):
    """What a task with demonstrations in its prompt has besides."""

    split: str = option("validation", "Split of a folder or a hub dataset. 資料的分割")
    apply_chat_template: bool = option(False, "Ask in turns, as SFT teaches, not in plain text. 以對話格式提問")
    shots: int = option(0, "Demonstrations in the prompt. 示範數")
    demonstrations: str | None = option(
        None, "Data to take demonstrations from (its train split). Default: the test data's own. 示範的來源"
    )


class Task(ABC):
    """One measurement, of one model or, where its options have `models`, of each of them.

    A subclass sets `name`, `protocol` (how the task is put), `version` (raised when the same protocol gives other
    outputs) and `Arguments`, and writes `read`, `prepare` and `ask`.
    """

    name: ClassVar[str]
    protocol: str
    version: ClassVar[int] = 1
    unit: ClassVar[str] = "items"  # what the progress counts
    files: Sequence[str] = ()  # what `write` writes
    baselines: ClassVar[Sequence[str]] = ()  # names among `models` that are no models
    Arguments: ClassVar[type[EvalArguments]] = TaskArguments

    def __init__(self, options: Any):
        """Raises UserError with all faults of the data."""
        self.options = options
        self.folder = None if options.output_dir is None else Path(options.output_dir)
        self.model = None if isinstance(options, ModelsArguments) else options.model_name_or_path
        self.rows = self.limited(self.read())

    def limited(self, rows: Sequence[Any]) -> Sequence[Any]:
        """What `limit` leaves of them."""
        return rows[: self.options.limit]

    def check(self) -> None:  # noqa: B027, most tasks have nothing to check besides
        """What does not depend on the model. Raises UserError."""

    def of_models(self) -> list[Task]:
        """The task of each model, with the rows that were read. Raises UserError for models that cannot be measured.

        Several models are checked before the first is measured, and each has a folder of its own, named after it.
        """
        if not isinstance(self.options, ModelsArguments):
            return [self]
        models = self.options.models
        if not models:
            raise UserError("--models is an empty list; give at least one model.")
        if not self.options.dry_run:  # it reads the weights' headers, so a hub's model is fetched
            check_generators(model for model in models if model not in self.baselines)
        return [self.of(model, place) for model, place in zip(models, folders(models, self.folder), strict=True)]

    def of(self, model: str, folder: Path | None) -> Task:
        part = copy(self)
        part.model, part.folder = model, folder
        return part

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
            raise UserError(f"{source}: {' '.join(faults[:SHOWN])}{more} Remove these {noun}s.")
        return made

    def load(self, device: torch.device) -> PreTrainedModel | None:
        """The model that is asked, where something is left to ask; on every process alike. None for a baseline."""
        return None if self.model in self.baselines else load_generator(self.model, self.options.dtype, device)[0]

    @abstractmethod
    def ask(self, model: PreTrainedModel, ids: Sequence[str]) -> Iterator[Item]:
        """The scored items of these ids, in any order."""

    def shares(self, ids: Sequence[str]) -> Sequence[str]:
        """Of each id, what one process must make in one go, such as its story."""
        return ids

    def counted(self, items: Sequence[Item]) -> Sequence[Item]:
        """Those of all items that have something to measure."""
        return items

    def figures(self, items: Sequence[Item], clusters: NDArray) -> Mapping[str, Figure]:
        """What is reported of all counted items, and of each group. clusters: (N,)."""
        return percentages(items, clusters)

    def details(self, items: Sequence[Item]) -> Mapping[str, Any]:
        """Anything else of the whole run. JSON values.

        `scale`, if it is there: what a mean of the items' scores is multiplied by to be the figure of its name, for
        `eval compare`; 100 without, a percentage.
        """
        return {}

    def report(self, measured: Mapping[str, Results]) -> None:
        """Show the results of all models, by model, and write what tells of them together."""
        for of_model in measured.values():
            self.show(of_model)

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

    def write(self, results: Results, items: Sequence[Item]) -> None:  # noqa: B027, most tasks have no such files
        """Write `files` into the folder."""

    def settings(self) -> Mapping[str, Any]:
        """What else the outputs depend on, recorded in `settings.json`. JSON values."""
        return {"dtype": self.options.dtype}

    @property
    def record(self) -> Settings:
        """All that decides the outputs."""
        options = self.options
        return Settings(
            self.name, self.protocol, self.version, self.model, self.model_hash, self.data, self.data_hash,
            options.seed, options.limit, self.settings(),
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
                f"--shots {options.shots}: {options.dataset_name!r} is the file being evaluated. Give "
                "other examples with --demonstrations, such as the training split's file."
            )
        return options.demonstrations or options.dataset_name

    @property
    def data(self) -> str:
        """What the rows were read from, as the user named it."""
        return self.options.dataset_name

    @property
    def data_hash(self) -> str:
        return results.fingerprint([asdict(row) if is_dataclass(row) else row for row in self.rows])

    @property
    def model_hash(self) -> str:
        return model_hash(self.model)

    @property
    def written(self) -> Sequence[str]:
        """What the output folder contains at the end."""
        return ("results.json", "items.jsonl", *self.files)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.model)

    @cached_property
    def context(self) -> int | None:
        """Tokens that the model reads at once; None = any number."""
        return context_length(load_config(self.model, what="a causal language model"))


def _rounded(value: float) -> str:
    return f"{value:.2f}" if value < 1e6 else f"{value:.2e}"
