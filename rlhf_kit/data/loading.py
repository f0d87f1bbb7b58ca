"""One call from any source to validated rows of one canonical shape."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
import pyarrow

from rlhf_kit.data import sources
from rlhf_kit.data.formats import columns_fault, completion_text, detect_kind, report, shared_prompt, validate
from rlhf_kit.errors import UserError

Row = dict[str, Any]


def load(source: str, kinds: Sequence[str], split: str = "train", seed: int = 0) -> tuple[datasets.Dataset, str]:
    """(rows, kind) of a source: "world", "world:KIND", a file, a folder, or a hub id ("name" or "name:config").

    `kinds` are the kinds acceptable here; which one it is shows in the columns ("world": the first of `kinds`).
    A file is taken whole whatever `split`; `seed` moves only the world. Columns of the rows:
    text: `text`; demonstrations: `messages`, or `prompt` + `completion` (str);
    ranked: `prompt`, `completions`, `ranks` (1..K where there are none);
    pairs: the same with K = 2, ranks [1, 2], and `margin` (float | None); thumbs: `prompt`, `completion`, `label`;
    prompts: `prompt` and all further columns. `prompt` is str in all rows or messages in all rows.
    Raises UserError with all faults of the source.
    """
    found = sources.read(str(source), kinds, split, seed)
    columns = _columns(found.rows)
    kind = detect_kind(columns, kinds)
    if kind is None and columns:
        faults = [(0, columns_fault(columns, kinds)), *found.context.faults]
        raise report(found.name, faults, len(found.rows) + len(found.context.faults), found.context.unit)
    kind = kind or kinds[0]
    validate(found.rows, kind, found.name, found.context)
    rows = _CANONICAL[kind](found.rows)
    try:
        return datasets.Dataset.from_list(rows, features=_features(kind, rows)), kind
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        raise UserError(
            f"{found.name}: a column holds values of different types: {str(error).splitlines()[0]}. "
            "Give each column one type."
        ) from error


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
    return dataset.select(train), dataset.select(test)


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
    turns = row["prompt"] if row.get("prompt") is not None else row["messages"]
    turns = _as_messages(turns)
    said = next((at for at, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))
    if row.get("prompt") is not None:
        said = len(turns)
    return json.dumps([(turn["role"], turn["content"].strip()) for turn in turns[:said]], ensure_ascii=False)


def _as_messages(prompt: str | Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": message["role"], "content": message["content"]} for message in prompt]


def _one_prompt_type(rows: Sequence[Row]) -> list[Row]:
    """Prompts as messages in all rows as soon as one is: a column has one type."""
    if all(isinstance(row["prompt"], str) for row in rows):
        return list(rows)
    return [{**row, "prompt": _as_messages(row["prompt"])} for row in rows]


def _text(rows: Sequence[Row]) -> list[Row]:
    return [{"text": row["text"]} for row in rows]


def _demonstrations(rows: Sequence[Row]) -> list[Row]:
    if all(row.get("messages") is None and isinstance(row["prompt"], str) for row in rows):
        return [{"prompt": row["prompt"], "completion": completion_text(row["completion"])} for row in rows]
    dialogues = []
    for row in rows:
        if row.get("messages") is not None:
            messages = _as_messages(row["messages"])
        else:
            answer = {"role": "assistant", "content": completion_text(row["completion"])}
            messages = [*_as_messages(row["prompt"]), answer]
        dialogues.append({"messages": messages})
    return dialogues


def _ranked(rows: Sequence[Row]) -> list[Row]:
    canonical = []
    for row in rows:
        completions = [completion_text(completion) for completion in row["completions"]]
        ranks = row.get("ranks")
        ranks = range(1, len(completions) + 1) if ranks is None else ranks
        canonical.append({"prompt": row["prompt"], "completions": completions, "ranks": [int(rank) for rank in ranks]})
    return _one_prompt_type(canonical)


def _pairs(rows: Sequence[Row]) -> list[Row]:
    canonical = []
    for row in rows:
        chosen, rejected, margin = row["chosen"], row["rejected"], row.get("margin")
        prompt = row.get("prompt")
        canonical.append(
            {
                "prompt": shared_prompt(chosen, rejected) if prompt is None else prompt,
                "completions": [completion_text(chosen), completion_text(rejected)],
                "ranks": [1, 2],
                "margin": None if margin is None else float(margin),
            }
        )
    return _one_prompt_type(canonical)


def _thumbs(rows: Sequence[Row]) -> list[Row]:
    return _one_prompt_type(
        [
            {"prompt": row["prompt"], "completion": completion_text(row["completion"]), "label": bool(row["label"])}
            for row in rows
        ]
    )


def _prompts(rows: Sequence[Row]) -> list[Row]:
    names = _columns(rows)
    return _one_prompt_type([{name: row.get(name) for name in names} for row in rows])


_CANONICAL = {
    "text": _text,
    "demonstrations": _demonstrations,
    "ranked": _ranked,
    "pairs": _pairs,
    "thumbs": _thumbs,
    "prompts": _prompts,
}


def _features(kind: str, rows: Sequence[Row]) -> datasets.Features | None:
    """Types of the canonical columns, the same whatever the first rows hold; further columns are inferred."""
    if kind == "prompts":
        return None
    string = datasets.Value("string")
    messages = datasets.List({"role": string, "content": string})
    types = {
        "text": string,
        "messages": messages,
        "prompt": string if isinstance(rows[0].get("prompt"), str) else messages,
        "completion": string,
        "completions": datasets.List(string),
        "ranks": datasets.List(datasets.Value("int64")),
        "margin": datasets.Value("float64"),
        "label": datasets.Value("bool"),
    }
    return datasets.Features({name: types[name] for name in rows[0]})
