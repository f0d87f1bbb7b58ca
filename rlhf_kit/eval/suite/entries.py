"""A suite file: a declared list of measurements on the models of every stage.

The list is a YAML file: entries of `name`, `command` (a task's name), its `options`, `figure` (the score that
counts), `higher_is_better`, and where they are needed `items`, `group`, `paired` and `meaning` (see `Entry`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.eval.commands import TASKS, task_named
from rlhf_kit.eval.tables import TableTask
from rlhf_kit.eval.task import EvalArguments, ModelsArguments, Task
from rlhf_kit.inputs import read_yaml
from rlhf_kit.options.named import NAME
from rlhf_kit.options.reading import read_record

OF_REWARD_MODELS = "reward"  # a suite's models are language models
COMMANDS = [name for name in TASKS if name != OF_REWARD_MODELS]
OF_THE_SUITE = ("model", "models", "model_name_or_path", "output", "output_dir", "limit", "dry_run")


@dataclass(frozen=True)
class Entry:
    """One measurement of a suite.

    Args:
        options: of the command, without the dashes; a list for several values, true for a flag.
        figure: the headline, a score of `results.json`.
        items: the first N of the data, part of the declaration; None = all.
        group: of the results, such as a domain, whose figure it is; "" = all items.
        paired: the score of the items whose difference decides, where the figure is not the mean of one; it moves with
            the figure. "" = the figure.
        meaning: what the figure tells, in a line, English and Chinese.
    """

    name: str
    command: str
    options: Mapping[str, Any]
    figure: str
    higher_is_better: bool
    items: int | None = None
    group: str = ""
    paired: str = ""
    meaning: str = ""

    @property
    def several_models(self) -> bool:
        """Whether the task takes several models, and keeps each in a folder of its own."""
        return issubclass(self.task.Arguments, ModelsArguments)

    @property
    def task(self) -> type[Task]:
        kind = task_named(self.command)
        if issubclass(kind, TableTask):
            raise UserError(f"a suite cannot hold {self.command!r}, which is a table of measurements itself.")
        return kind

    def arguments(self, model: str, folder: Path | None, limit: int | None = None, **others: Any) -> EvalArguments:
        """The options of the task for a model. Raises UserError with all that it does not take."""
        for name in self.options:
            if str(name).replace("-", "_") in OF_THE_SUITE:
                raise UserError(f"the suite sets {name}; leave it out of `options` (a number of items is `items`).")
        counts = [count for count in (self.items, limit) if count is not None]
        own = {"models": [model]} if self.several_models else {"model_name_or_path": model}
        own |= {"output_dir": None if folder is None else str(folder), **others}
        own |= {"limit": min(counts)} if counts else {}
        try:
            return read_record(f"eval {self.command}", self.task.Arguments, {**self.options, **own})
        except UserError as error:
            raise UserError(f"{error} See `rlhf-kit eval {self.command} --help`.") from error


# --- the file -------------------------------------------------------------------------------------------------------


def read_suite(path: Path) -> list[Entry]:
    """The entries of a suite file. Raises UserError with all its faults; options are read as the command does."""
    try:
        rows = read_yaml(path)
    except UserError as error:
        raise UserError(f"--suite: {error} Give a YAML file with a list.") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(f"--suite {str(path)!r} must hold a list of entries, such as `- name: reading`.")
    faults = [f"entry {_called(number, row)}: {fault}" for number, row in enumerate(rows, 1) for fault in _faults(row)]
    # In lower case, as some disks fold the names of folders.
    names = Counter(str(row["name"]).lower() for row in rows if isinstance(row, Mapping) and "name" in row)
    faults += [f"{count} entries have the name {name!r}" for name, count in names.items() if count > 1]
    if faults:
        raise UserError(f"--suite {str(path)!r}:" + "".join(f"\n  {fault}" for fault in faults))
    return [Entry(**row) for row in rows]


def _called(number: int, row: Any) -> str:
    return f"{number} ({row['name']})" if isinstance(row, Mapping) and "name" in row else str(number)


def _faults(row: Any) -> Iterator[str]:
    if not isinstance(row, Mapping):
        yield f"is {row!r}; give `name`, `command` and the rest"
        return
    known = {field.name: field.default is MISSING for field in fields(Entry)}
    unknown = [key for key in row if key not in known]
    missing = [key for key, needed in known.items() if needed and key not in row]
    yield from (f"there is no {key!r}.{did_you_mean(str(key), known)}" for key in unknown)
    if missing:
        yield f"has no {', '.join(missing)}"
    wrong = [fault for key, value in row.items() if key in known and (fault := _fault(key, value))]
    yield from wrong
    if not (unknown or missing or wrong):
        try:
            Entry(**row).arguments("M", None)
        except UserError as error:
            yield str(error)


def _fault(key: str, value: Any) -> str | None:
    """What is wrong with one value of an entry."""
    if key == "command" and value == OF_REWARD_MODELS:
        return (
            f"command {value!r} measures reward models, and the models of a suite are language models; use "
            "`rlhf-kit eval reward` and `rlhf-kit eval compare`"
        )
    if key == "command" and value not in COMMANDS and ":" not in str(value):
        return f"a suite cannot hold {value!r}.{did_you_mean(str(value), COMMANDS)} Give one of {', '.join(COMMANDS)}"
    needed = {
        "name": ("a name that can be a folder's", isinstance(value, str) and NAME.fullmatch(value)),
        "options": ("names with their values", isinstance(value, Mapping)),
        "higher_is_better": ("true or false", isinstance(value, bool)),
        "items": ("a whole number from 1", isinstance(value, int) and not isinstance(value, bool) and value > 0),
    }
    what, right = needed.get(key, ("a name", isinstance(value, str)))
    return None if right else f"{key} is {value!r}; give {what}"
