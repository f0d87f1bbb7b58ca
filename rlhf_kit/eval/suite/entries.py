"""`rlhf-kit eval suite`: a declared list of measurements on the models of every stage. Parses; torch comes later.

The list is a YAML file: entries of `name`, `command` (one of COMMANDS), its `options`, `figure` (the score that
counts), `higher_is_better`, and where they are needed `items`, `group`, `paired` and `meaning` (see `Entry`).
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.eval import options as generators
from rlhf_kit.eval.coqa import options as coqa
from rlhf_kit.inputs import read_yaml
from rlhf_kit.options.bounds import add_number
from rlhf_kit.parser import Parser

# command -> its options; its module, whose `run` gets them
COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "coqa": (coqa.add_options, "rlhf_kit.eval.coqa.options"),
    **{name: (options, module) for name, (_, _, options, module) in generators.SUBCOMMANDS.items()},
}
SEVERAL_MODELS = ("icl", "tldr")  # take --models, and keep each in a folder of its own
OF_THE_SUITE = ("model", "models", "output", "limit")
NAME = re.compile(r"\w[\w.-]*")  # also of a folder


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


def add_options(parser: argparse.ArgumentParser, suite: Path) -> None:
    """`suite`: the one that is run where none is given."""
    parser.add_argument(
        "--models",
        required=True,
        nargs="+",
        type=model,
        metavar="NAME=M",
        help="folders or hub ids in the order of training; without NAME= the folder's name 依訓練順序的模型",
    )
    parser.add_argument(
        "--suite", type=Path, default=suite, metavar="FILE", help="YAML: what is measured [the world's] 評測清單"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write suite.json, suite.md, report.html there; go on there 輸出資料夾",
    )
    add_number(parser, "--limit", help="N items of each entry at most: a trial, not a result")


def run(options: argparse.Namespace) -> None:
    """`rlhf-kit eval suite` with parsed options. Raises UserError."""
    importlib.import_module("rlhf_kit.eval.suite.run").run(options)


def model(text: str) -> tuple[str, str]:
    """(name, folder or hub id) of `NAME=M` or `M`.

    >>> model("base=runs/demo/0"), model("runs/demo/sft/")
    (('base', 'runs/demo/0'), ('sft', 'runs/demo/sft/'))
    """
    name, equals, path = text.partition("=")
    if not equals or "/" in name:  # "=" may stand in a path
        name, path = re.sub(r"[^\w.-]+", "-", Path(text).name), text
    if not NAME.fullmatch(name) or not path:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=M, as in sft=runs/demo/sft; NAME becomes a folder")
    return name, path


# --- the file -------------------------------------------------------------------------------------------------------


def read_suite(path: Path) -> list[Entry]:
    """The entries of a suite file. Raises UserError with all its faults; options are parsed as the command does."""
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
            arguments(Entry(**row), "M", None, None)
        except UserError as error:
            yield str(error)


def _fault(key: str, value: Any) -> str | None:
    """What is wrong with one value of an entry."""
    if key == "command" and value not in list(COMMANDS):
        return f"there is no command {value!r}.{did_you_mean(str(value), COMMANDS)} Give one of {', '.join(COMMANDS)}"
    needed = {
        "name": ("a name that can be a folder's", isinstance(value, str) and NAME.fullmatch(value)),
        "options": ("names with their values", isinstance(value, Mapping)),
        "higher_is_better": ("true or false", isinstance(value, bool)),
        "items": ("a whole number from 1", isinstance(value, int) and not isinstance(value, bool) and value > 0),
    }
    what, right = needed.get(key, ("a name", isinstance(value, str)))
    return None if right else f"{key} is {value!r}; give {what}"


# --- the command's options ------------------------------------------------------------------------------------------


class _Parser(Parser):
    def error(self, message: str) -> None:
        raise UserError(message)


def arguments(entry: Entry, model: str, folder: Path | None, limit: int | None) -> argparse.Namespace:
    """What the entry's command gets as if it had been typed. Raises UserError for options that it does not take."""
    parser = _Parser(prog=entry.command, add_help=False)
    COMMANDS[entry.command][0](parser)
    given = [f"--{'models' if entry.command in SEVERAL_MODELS else 'model'}={model}"]
    given += [] if folder is None else [f"--output={folder}"]
    counts = [count for count in (entry.items, limit) if count is not None]
    given += [f"--limit={min(counts)}"] if counts else []
    for name, value in entry.options.items():
        given += _typed(str(name).replace("_", "-"), value)
    try:
        return parser.parse_args(given)
    except UserError as error:
        raise UserError(f"{error}. See `rlhf-kit eval {entry.command} --help`.") from error


def _typed(name: str, value: Any) -> Sequence[str]:
    if name in OF_THE_SUITE:
        raise UserError(f"the suite sets {name}; leave it out of `options` (a number of items is `items`).")
    if isinstance(value, bool):
        return [f"--{name}"] * value
    if value is None or isinstance(value, Mapping):
        raise UserError(f"option {name} is {value!r}; give a value, a list of them, or true for a flag.")
    return [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
