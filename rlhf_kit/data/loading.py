"""One call from any source to validated rows of one canonical shape."""

from __future__ import annotations

import logging
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import datasets
import pyarrow

from rlhf_kit.data import shapes, sources
from rlhf_kit.data.checks import ranks_of
from rlhf_kit.data.columns import DatasetRows, Exact, exact_columns, exact_rows, further_types, parts_of, rows_of
from rlhf_kit.data.faults import check_on_bad_row
from rlhf_kit.data.files import Source
from rlhf_kit.data.formats import columns_fault, detect_kind, keep, report, sift, validate
from rlhf_kit.data.groups import EXTRAS, Row, rankings
from rlhf_kit.data.messages import (
    as_dialogue,
    as_messages,
    completion_text,
    demonstration,
    prompt_key,
    with_opening,
)
from rlhf_kit.data.prompts import handed_on, prompt_of
from rlhf_kit.data.rows import Spooled, holder, is_large, made
from rlhf_kit.data.store import key_of, place_of, stored, write
from rlhf_kit.data.unread import notices, refused_columns
from rlhf_kit.errors import UserError

NAMED_ROWS = 3  # numbers of dropped rows named, for each kind of fault
logger = logging.getLogger(__name__)
# Kinds of the data sets whose rows are checked and canonical, by the very object: what is mapped, filtered, renamed or
# copied from one is another, of which nothing is known.
_checked_kinds: WeakKeyDictionary[datasets.Dataset, str] = WeakKeyDictionary()


def load(
    source: str,
    kinds: Sequence[str],
    split: str = "train",
    seed: int = 0,
    on_bad_row: str = "error",
    tell: Callable[[str], None] = logger.warning,
) -> tuple[datasets.Dataset, str]:
    """(rows, kind) of a source: "world", "world:KIND", a file, a folder, or a hub id ("name" or "name:config").

    `kinds` are the kinds acceptable here; which one it is shows in the columns ("world": the first of `kinds`).
    A file is taken whole whatever `split`; `seed` moves only the world. Columns of the rows:
    text: `text` (empty rows are left out and counted), and where any row has them `spans` (a list of [start, end) in
        characters, or None);
    demonstrations: `messages`, or `prompt` + `completion` (str);
    ranked: `prompt`, `completions`, `ranks` (given, or by `scores`, or 1..K where no row has either);
    pairs: the same with K = 2, ranks [1, 2], and `margin` (float | None); pairs of one `group` are one ranking;
    both: `margin` and `weight` (float | None), `labeler` (str | None) where any row of the source has them;
    thumbs: `prompt`, `completion`, `label`;
    prompts: the `prompt` of rows of any kind, and all other columns as they stand (`data.prompts`).
    `prompt` is str in all rows or messages in all rows.

    Args:
        on_bad_row: "error" refuses a source with faulty rows; "drop" leaves them out, and one warning says how many of
            which kind of fault. Faults of the source itself (columns, syntax) are refused all the same.
        tell: takes what is to be said of a source that is read: columns that nothing reads, rows left out.

    Raises:
        UserError: with all faults of the source, or when nothing is left.
    """
    check_on_bad_row(on_bad_row)
    unread = sources.find(str(source), kinds, split, seed)
    if unread.content is not None:
        return _stored(unread, kinds, on_bad_row, tell)
    source_read = unread.read(list)
    rows, kind, _ = _canonical(source_read, kinds, on_bad_row, tell)
    return _known(_dataset(rows, kind, source_read.name), kind), kind


def _stored(
    unread: sources.Unread, kinds: Sequence[str], on_bad_row: str, tell: Callable[[str], None]
) -> tuple[datasets.Dataset, str]:
    """`load` of a large source: read once, and from then on where it was stored."""

    def make(path: Path) -> dict:
        lines: list[str] = []
        rows, kind, _ = _canonical(unread.read(Spooled), kinds, on_bad_row, lines.append)
        with _storing(unread.name):
            further = further_types(rows, _further(rows[0], kind), unread.name)
            write(path, rows, datasets.Features(_types(rows, further) | further))
        return {"kind": kind, "lines": [line.removeprefix(f"{unread.name}: ") for line in lines]}

    dataset, about = stored(key_of("rows", unread.content(), kinds, on_bad_row), unread.name, make)
    for line in about["lines"]:
        tell(f"{unread.name}: {line}")
    tell(f"{unread.name}: {len(dataset):,} rows are read from {place_of(dataset)}")
    return _known(dataset, about["kind"]), about["kind"]


def _known(dataset: datasets.Dataset, kind: str | None) -> datasets.Dataset:
    if kind is not None:
        _checked_kinds[dataset] = kind
    return dataset


def select(dataset: datasets.Dataset, rows: Iterable[int]) -> datasets.Dataset:
    """Some rows of a data set, which need no second check where `load` has made it."""
    return _known(dataset.select(rows), _checked_kinds.get(dataset))


def checked(
    dataset: datasets.Dataset | Sequence[Mapping[str, Any]] | None,
    kinds: Sequence[str],
    name: str,
    on_bad_row: str = "error",
) -> tuple[Sequence[Row], str, dict[str, int]]:
    """(rows, kind, how many rows of each fault were dropped) of rows handed over in Python: as `load` has a source's.

    A data set that is just as `load` (or `select`) gave it is not checked again.

    Args:
        name: what to call the rows in a message.

    Raises:
        UserError: as `load`; and for what is neither a `datasets.Dataset` nor a list of dicts.
    """
    if isinstance(dataset, datasets.Dataset):
        kind = _checked_kinds.get(dataset)
        if len(dataset) and kind in (("prompts",) if "prompts" in kinds else kinds):
            return DatasetRows(dataset) if is_large(dataset) else exact_rows(dataset), kind, {}
        parts = (read(0, count) for count, read in parts_of(dataset, lambda part: rows_of(part, kinds)))
        rows = holder(is_large(dataset))(row for part in parts for row in part)
    elif dataset is None or isinstance(dataset, list | tuple):
        rows = list(dataset or ())
    else:
        raise UserError(f"{name} is of the type {type(dataset).__name__}; give a datasets.Dataset or a list of rows.")
    return _canonical(Source(name, rows), kinds, on_bad_row, logger.warning)


def _canonical(
    source: Source, kinds: Sequence[str], on_bad_row: str, tell: Callable[[str], None]
) -> tuple[Sequence[Row], str, dict[str, int]]:
    rows, read_as = shapes.read(source.rows, kinds)
    source = Source(source.name, rows, source.context)
    columns = _columns(source.rows)
    if "prompts" in kinds:  # which rows of the other kinds hold too
        kinds = ("prompts",)
    kind = detect_kind(columns, kinds)
    if kind is None and columns:
        faults = [(0, columns_fault(columns, kinds)), *source.context.faults]
        raise report(source.name, faults, len(source.rows) + len(source.context.faults), source.context.unit)
    kind = kind or kinds[0]
    source.context.faults += [(0, fault) for fault in refused_columns(source.rows, kind)]
    messages = read_as + notices(source.rows, kind)
    if kind == "text":
        source = _without_blank_texts(source, tell)
    bad: dict[str, list[int]] = {}
    if on_bad_row == "drop":
        source, bad = _without_bad_rows(source, kind, tell)
    validate(source.rows, kind, source.name, source.context)
    for notice in messages:
        tell(f"{source.name}: {notice}")
    return _CANONICAL[kind](source.rows), kind, {fault: len(numbers) for fault, numbers in bad.items()}


def _dataset(rows: Sequence[Row], kind: str, source: str) -> datasets.Dataset:
    """Rows with the types of the canonical columns, the same whatever the first rows hold; others as they stand."""
    further = _further(rows[0], kind)
    kept = exact_columns({name: [row[name] for row in rows] for name in further}, source)
    known = [{name: value for name, value in row.items() if name not in further} for row in rows]
    with _storing(source):
        dataset = datasets.Dataset.from_list(known, features=datasets.Features(_types(known)))
    return datasets.concatenate_datasets([dataset, *kept], axis=1)


def _further(row: Row, kind: str) -> list[str]:
    """The columns that are handed on as they stand."""
    return [name for name in row if kind == "prompts" and name != "prompt"]


@contextmanager
def _storing(source: str) -> Iterator[None]:
    try:
        yield
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{source}: a column holds values that cannot be stored: {str(error).splitlines()[0]}."
        ) from error


def _without_blank_texts(source: Source, tell: Callable[[str], None]) -> Source:
    """WikiText's rows are lines, many of them empty: they say nothing, and nothing is wrong with them."""
    kept = array("Q", (at for at, row in enumerate(source.rows) if not _is_blank(row)))
    if len(kept) == len(source.rows):
        return source
    count = f"{len(source.rows) - len(kept)} of {len(source.rows)} rows"
    if not kept and not source.context.faults:
        raise UserError(f"{source.name}: there is no text to train on, {count} are empty.")
    tell(f"{source.name}: {count} hold no text and are left out")
    return Source(source.name, *keep(source.rows, source.context, kept))


def _is_blank(row: Any) -> bool:
    text = row.get("text") if isinstance(row, Mapping) else None
    return isinstance(text, str) and not text.strip()


def _without_bad_rows(source: Source, kind: str, tell: Callable[[str], None]) -> tuple[Source, dict[str, list[int]]]:
    rows, context, bad = sift(source.rows, kind, source.context)
    if not bad:
        return source, bad
    counts = "; ".join(
        f"{len(numbers)} {fault} ({_numbered(numbers, context.unit)})" for fault, numbers in bad.items()
    )
    count = f"{len(source.rows) - len(rows)} of {len(source.rows)} rows"
    if not rows:
        raise UserError(f"{source.name}: nothing is left, {count} are faulty: {counts}.")
    tell(f"{source.name}: {count} dropped: {counts}")
    return Source(source.name, rows, context), bad


def _numbered(numbers: Sequence[int], unit: str) -> str:
    """ "row 4", "rows 4, 18", "rows 4, 18, 77, ..." """
    more = ", ..." if len(numbers) > NAMED_ROWS else ""
    return f"{unit}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:NAMED_ROWS]))}{more}"


def split_by_prompt(
    dataset: datasets.Dataset, test_size: float, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(train, test) with no prompt in both. `test_size`: a share of the prompts below 1, else a number of prompts.

    A prompt as text and the same prompt as one user turn are one; a dialogue's prompt is all before its first answer.
    Raises UserError if either side would be empty.
    """
    keys = [_prompt_key(row) for row in dataset]
    prompts = list(dict.fromkeys(keys))
    wanted = round(len(prompts) * test_size) if test_size < 1 else int(test_size)
    wanted = max(wanted, 1) if 0 < test_size < 1 else wanted
    if not 0 < wanted < len(prompts):
        raise UserError(
            f"A test split of size {test_size} cannot be taken from {len(prompts)} different prompt(s): "
            "at least one must be left on either side."
        )
    held_out = set(random.Random(seed).sample(prompts, wanted))
    train = [at for at, key in enumerate(keys) if key not in held_out]
    test = [at for at, key in enumerate(keys) if key in held_out]
    return select(dataset, train), select(dataset, test)


def _columns(rows: Iterable[Any]) -> list[str]:
    """Names that hold something in some row, in the order they appear."""
    names: dict[str, None] = {}
    for row in rows:
        if isinstance(row, Mapping):
            names.update((str(name), None) for name, value in row.items() if value is not None)
    return list(names)


def _prompt_key(row: Mapping[str, Any]) -> str:
    if "text" in row:
        return row["text"]
    if row.get("prompt") is not None:
        return prompt_key(row["prompt"])
    turns = row["messages"]
    end = next((at for at, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))
    return prompt_key(turns[:end])


def _one_prompt_type(rows: Sequence[Row]) -> Sequence[Row]:
    """Prompts as messages in all rows as soon as one is: a column has one type."""
    if all(isinstance(row["prompt"], str) for row in rows):
        return rows
    return made(lambda row: {**row, "prompt": as_messages(row["prompt"])}, rows)


def _text(rows: Sequence[Row]) -> Sequence[Row]:
    names = ("text", "spans") if any(row.get("spans") for row in rows) else ("text",)
    return made(lambda row: {name: row.get(name) for name in names}, rows)


def _demonstrations(rows: Sequence[Row]) -> Sequence[Row]:
    rows = made(demonstration, rows)
    if all("messages" not in row for row in rows):
        return rows
    names = ("messages", "tools") if any("tools" in row for row in rows) else ("messages",)
    return made(lambda row: {name: as_dialogue(row).get(name) for name in names}, rows)


def _ranked(rows: Sequence[Row]) -> Sequence[Row]:
    def canonical(row: Row) -> Row:
        row = with_opening(row)
        return {**row, "completions": [completion_text(each) for each in row["completions"]], "ranks": ranks_of(row)}

    return _one_prompt_type(_with_extras(made(canonical, rows)))


def _pairs(rows: Sequence[Row]) -> Sequence[Row]:
    return _one_prompt_type(_with_extras(rankings(made(with_opening, rows)), always=("margin",)))


def _with_extras(rows: Sequence[Row], always: Sequence[str] = ()) -> Sequence[Row]:
    """A ranking's columns, and those of EXTRAS that some row has or that are in `always`: None where missing."""
    casts = {"margin": float, "weight": float, "labeler": str}
    names = [name for name in EXTRAS if name in always or any(row.get(name) is not None for row in rows)]
    return made(
        lambda row: (
            {name: row[name] for name in ("prompt", "completions", "ranks")}
            | {name: None if row.get(name) is None else casts[name](row[name]) for name in names}
        ),
        rows,
    )


def _thumbs(rows: Sequence[Row]) -> Sequence[Row]:
    def canonical(row: Row) -> Row:
        row = with_opening(row)
        answer = completion_text(row["completion"])
        return {"prompt": row["prompt"], "completion": answer, "label": bool(row["label"])}

    return _one_prompt_type(made(canonical, rows))


def _prompts(rows: Sequence[Row]) -> Sequence[Row]:
    names = handed_on(_columns(rows))
    return _one_prompt_type(made(lambda row: {"prompt": prompt_of(row)} | {n: row.get(n) for n in names}, rows))


_CANONICAL = {
    "text": _text,
    "demonstrations": _demonstrations,
    "ranked": _ranked,
    "pairs": _pairs,
    "thumbs": _thumbs,
    "prompts": _prompts,
}


def _types(rows: Sequence[Row], further: Iterable[str] = ()) -> dict[str, Any]:
    """Types of the canonical columns, the same whatever the first rows hold; of `further` ones none."""
    string, number, whole = (datasets.Value(name) for name in ("string", "float64", "int64"))
    types = {
        "text": string,
        "spans": datasets.List(datasets.List(whole)),
        "completion": string,
        "completions": datasets.List(string),
        "ranks": datasets.List(whole),
        "margin": number,
        "weight": number,
        "labeler": string,
        "label": datasets.Value("bool"),
        "tools": Exact(),
    }
    names = [name for name in rows[0] if name not in further]
    return {name: _dialogue_type(name, rows) if name in ("messages", "prompt") else types[name] for name in names}


def _dialogue_type(name: str, rows: Sequence[Row]) -> Any:
    """Text, a struct where turns are a role and a content, and where one holds more, what keeps it as it is."""
    string = datasets.Value("string")
    if isinstance(rows[0][name], str):
        return string
    plain = all(turn.keys() == {"role", "content"} for row in rows for turn in row[name])
    return datasets.List({"role": string, "content": string}) if plain else Exact()
