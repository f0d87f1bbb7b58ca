"""A table of transfers as a YAML file declares it: what is learned from, what is tested, and who learns.

seeds: [0, 1, 2]
training: {learning_rate: 5.0e-5}     # fields of ExtractiveConfig, for every row
data: [{name: en, source: "world:squad_en", language: en}]
tests: [{name: zh, source: "world:squad_zh", language: zh, scorers: [drcd]}]
rows: [{name: mbert-en, model: bert-base-multilingual-cased, fine_tuned_on: [en]}]
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from rlhf_kit.data.faults import ON_BAD_ROW
from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.eval.extractive.finetune import ExtractiveConfig
from rlhf_kit.eval.scorers import SCORERS, SQUAD2
from rlhf_kit.eval.transfer.word_order import ORDERS
from rlhf_kit.inputs import read_yaml
from rlhf_kit.options.bounds import bound_of, broken_rule

NAME = re.compile(r"\w[\w.+-]*")  # also of a folder
FIRST = ":first"  # behind a scorer: against the first reference only
LANGUAGES = ("en", "zh")
QANET = "qanet"
OPTIMIZER = ("learning_rate", "weight_decay", "warmup_steps", "adam_epsilon", "optim", "lr_scheduler_type")
OF_THE_CELL = ("output_dir", "seed", "data_seed", "use_cpu", "bf16", "fp16")


@dataclass(frozen=True)
class Data:
    """Questions to learn from.

    Args:
        source: a file in SQuAD v1.1's format, a folder, a hub id or a kind of the world, as "world:squad_en". In it
            "{data}" is the folder of --data_dir.
        language: "en" or "zh", of the passages: rows that learned from it read it as their own.
        size: the first so many questions; of the world so many are made. None = all.
        word_order: of the passages (`word_order.ORDERS`); "" = their own.
    """

    name: str
    source: str
    language: str
    split: str = "train"
    size: int | None = None
    word_order: str = ""
    on_bad_row: str = "error"


@dataclass(frozen=True)
class Test:
    """Questions to be tested on, as `Data`.

    Args:
        scorers: names of `scorers.SCORERS`, the first for the table's comparisons; "drcd:first" takes the
            first reference alone.
        published_human: [EM, F1] of people, by the first scorer.
    """

    name: str
    source: str
    language: str
    scorers: tuple[str, ...]
    split: str = "test"
    size: int | None = None
    published_human: tuple[float, float] | None = None
    on_bad_row: str = "error"


@dataclass(frozen=True)
class Row:
    """A model and what it is fine-tuned on.

    Args:
        model: a hub id, a folder, "world:NAME" for a checkpoint that comes with the kit, or "qanet".
        fine_tuned_on: names of `Data`, shuffled together.
        pretrained_on: what the table says of it.
        from_scratch: the model's shape and tokenizer with new weights: what pre-training is worth.
        sizes: of QANet, fields of QANetConfig, and `vectors`: a file of word vectors.
        training: fields of ExtractiveConfig for this row, such as {freeze: embeddings}.
        published: test -> [EM, F1], by its first scorer.
    """

    name: str
    model: str
    fine_tuned_on: tuple[str, ...]
    pretrained_on: str = ""
    from_scratch: bool = False
    sizes: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """All of a file. `max_answer_length`: of an answer, in tokens; `training`: of every row, as a row's."""

    data: tuple[Data, ...]
    tests: tuple[Test, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    max_answer_length: int = 30
    training: Mapping[str, Any] = field(default_factory=dict)

    def languages(self, row: Row) -> set[str]:
        """Of what a row is fine-tuned on."""
        return {data.language for data in self.data if data.name in row.fine_tuned_on}


@dataclass(frozen=True)
class Cell:
    """A row trained with one seed, and its folder."""

    row: Row
    seed: int

    def folder(self, output: Path) -> Path:
        return output / self.row.name / f"seed-{self.seed}"


def read_table(path: Path) -> Table:
    """Raises UserError with all faults of the file."""
    try:
        content = read_yaml(path)
    except UserError as error:
        raise UserError(f"--table: {error} Give a YAML file with a table.") from error
    if not isinstance(content, Mapping):
        raise UserError(
            f"--table {str(path)!r} must hold `data`, `tests` and `rows`, as rlhf_kit/eval/transfer/world.yaml."
        )
    faults = list(_key_faults(content, Table))
    for key, kind in PARTS.items():
        entries = content.get(key, [])
        if not isinstance(entries, list) or (key in content and not entries):
            faults.append(f"{key} is {entries!r}; give a list with an entry at least")
            continue
        for number, entry in enumerate(entries, 1):
            called = f"{key} {number}"
            if isinstance(entry, Mapping) and "name" in entry:
                called += f" ({entry['name']})"
            faults += [f"{called}: {fault}" for fault in _entry_faults(entry, kind)]
        faults += [f"two of {key} have the name {name!r}" for name in _twice(entries)]
    faults += [
        f"{key} is {content[key]!r}; give {what}"
        for key, (right, what) in WHOLE.items()
        if key in content and not right(content[key])
    ]
    faults += _training_faults(content.get("training", {}), "training")
    if not faults:
        faults += _link_faults(content)
    if faults:
        raise UserError(f"--table {str(path)!r}:" + "".join(f"\n  {fault}" for fault in faults))
    return _made(content)


def _made(found: Mapping[str, Any]) -> Table:
    parts = {key: tuple(kind(**_frozen(entry)) for entry in found[key]) for key, kind in PARTS.items()}
    return Table(**{**_frozen(found), **parts})


def _frozen(value: Any) -> Any:
    """With tuples for lists."""
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


# --- faults ---------------------------------------------------------------------------------------------------------


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(NAME.fullmatch(value))


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _is_pair(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 2
    return numbers and all(isinstance(one, int | float) and 0 <= one <= 100 for one in value)


Rule = tuple[Callable[[Any], bool], str]
TEXT: Rule = (lambda value: isinstance(value, str), "a text")
FLAG: Rule = (lambda value: isinstance(value, bool), "true or false")
VALUES: Rule = (lambda value: isinstance(value, Mapping), "names with their values")
RULES: dict[str, Rule] = {
    "name": (_is_name, "a name that can be a folder's"),
    "language": (lambda value: value in LANGUAGES, "en or zh"),
    "size": (_is_count, "a whole number from 1"),
    "word_order": (lambda value: value in ORDERS, " or ".join(ORDERS)),
    "on_bad_row": (lambda value: value in ON_BAD_ROW, " or ".join(ON_BAD_ROW)),
    "scorers": (_is_names, "a list of scorers' names"),
    "fine_tuned_on": (_is_names, "a list of names of `data`"),
    "published_human": (_is_pair, "[EM, F1]"),
    "published": (
        lambda value: isinstance(value, Mapping) and all(map(_is_pair, value.values())), "names of tests with [EM, F1]"
    ),
    "from_scratch": FLAG,
    "sizes": VALUES,
    "training": VALUES,
}  # fmt: skip
WHOLE: dict[str, Rule] = {
    "seeds": (
        lambda value: isinstance(value, list) and bool(value) and all(_is_count(seed, 0) for seed in value),
        "a list of whole numbers",
    ),
    "max_answer_length": RULES["size"],
    "training": VALUES,
}
PARTS: dict[str, type] = {"data": Data, "tests": Test, "rows": Row}


def _key_faults(entry: Mapping[str, Any], kind: type) -> Iterator[str]:
    known = {one.name: one.default is MISSING and one.default_factory is MISSING for one in fields(kind)}
    yield from (f"there is no {key!r}.{did_you_mean(str(key), known)}" for key in entry if key not in known)
    missing = [key for key, needed in known.items() if needed and key not in entry]
    if missing:
        yield f"has no {', '.join(missing)}"


def _entry_faults(entry: Any, kind: type) -> Iterator[str]:
    if not isinstance(entry, Mapping):
        yield f"is {entry!r}; give names with their values"
        return
    yield from _key_faults(entry, kind)
    known = {one.name for one in fields(kind)}
    for key, value in entry.items():
        right, what = RULES.get(key, TEXT)
        if key in known and not right(value):
            yield f"{key} is {value!r}; give {what}"
    if kind is Test and _is_names(entry.get("scorers")):
        known = [name for name in SCORERS if name != SQUAD2]  # a table's questions all have an answer
        for name in entry["scorers"]:
            if name.removesuffix(FIRST) not in known:
                hint = did_you_mean(name, known)
                yield f"there is no scorer {name!r}.{hint} Give one of {', '.join(known)}, perhaps with {FIRST}"
    if kind is Row:
        yield from _training_faults(entry.get("training", {}), "training")
        if entry.get("model") == QANET:
            if entry.get("from_scratch"):
                yield "qanet is always from scratch; leave from_scratch out"
            yield from (
                f"training: qanet brings its own {key}; leave it out"
                for key in OPTIMIZER
                if key in entry.get("training", ())
            )
        elif entry.get("sizes"):
            yield f"sizes are QANet's; {entry.get('model')!r} has its own"


def _training_faults(given: Any, where: str) -> Iterator[str]:
    if not isinstance(given, Mapping):
        return
    known = {one.name: one.default for one in fields(ExtractiveConfig) if one.init and one.name not in OF_THE_CELL}
    for key, value in given.items():
        if key in OF_THE_CELL:
            yield f"{where}: {key} is set by the driver; leave it out"
        elif key not in known:
            yield f"{where}: there is no {key!r}.{did_you_mean(str(key), known)}"
        elif isinstance(known[key], float) and isinstance(value, str):
            yield f"{where}: {key} is the text {value!r}; write a number, 2.0e-5 where YAML reads 2e-5 as text"
        elif (
            value is not None and (bound := bound_of(key, "ExtractiveConfig")) and (rule := broken_rule(value, bound))
        ):
            yield f"{where}: {key} is {value!r}; it must {rule}"


def _twice(entries: Sequence[Any]) -> list[str]:
    # In lower case, as some disks fold the names of folders.
    names = Counter(str(entry["name"]).lower() for entry in entries if isinstance(entry, Mapping) and "name" in entry)
    return [name for name, count in names.items() if count > 1]


def _link_faults(found: Mapping[str, Any]) -> Iterator[str]:
    """Names that lead nowhere."""
    names = {key: [entry["name"] for entry in found[key]] for key in PARTS}
    for row in found["rows"]:
        for key, part in (("fine_tuned_on", "data"), ("published", "tests")):
            for name in row.get(key, ()):
                if name not in names[part]:
                    hint = did_you_mean(str(name), names[part])
                    yield f"row {row['name']}: {key} names {name!r}, which is not in {part}.{hint}"
