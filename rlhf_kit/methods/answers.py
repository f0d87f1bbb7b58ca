"""Rankings, pairs and thumbs as the token ids that DPO and KTO learn from: prompt and answer, each with its end.

What does not fit is left out and counted; nothing is cut. An answer ends as the assistant's turn does (`data.chat`).
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import datasets
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_kit import ops
from rlhf_kit.data.chat import encode_completion, encode_prompt, encoding, set_chat_template
from rlhf_kit.data.loading import checked
from rlhf_kit.data.rows import is_large
from rlhf_kit.data.store import token_key
from rlhf_kit.data.templates import warn_unread
from rlhf_kit.data.tokens import IDS, tokens_of
from rlhf_kit.data.workers import workers_for
from rlhf_kit.errors import UserError
from rlhf_kit.models.forward import pad_right

KINDS = ("ranked", "pairs", "thumbs")
WHOLE = datasets.Value("int64")
LIST = {"prompt_ids": IDS, "answer_ids": datasets.List(IDS), "better": datasets.List(WHOLE)}
LIST |= {"worse": datasets.List(WHOLE), "weight": datasets.Value("float64"), "length": WHOLE}
THUMB = {"prompt_ids": IDS, "completion_ids": IDS, "label": datasets.Value("bool"), "length": WHOLE}
Tell = Callable[[str], None]


def encode_lists(
    dataset: Dataset | Sequence[Mapping],
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    name: str,
    tell: Tell,
    workers: int | None = None,
) -> tuple[Dataset, dict[str, int]]:
    """Rankings and pairs as lists, and counts of what was left out: `prompt_ids`, the `answer_ids` of all answers, and
    the places among them that are `better` and `worse` in its strictly ordered pairs, with a `weight`.

    Raises:
        UserError: for rows of another kind, thumbs among them, and where no list has a pair that fits.
    """
    return _encoded(dataset, tokenizer, limit, name, tell, workers, LIST, _lists)


def encode_thumbs(
    dataset: Dataset | Sequence[Mapping],
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    name: str,
    tell: Tell,
    workers: int | None = None,
) -> tuple[Dataset, dict[str, int]]:
    """Thumbs, and rankings and pairs made thumbs, and counts of what was left out: `prompt_ids`, `completion_ids` and
    `label`. Of a ranking an answer before the median of its ranks is good, one behind it bad, one at it left out."""
    return _encoded(dataset, tokenizer, limit, name, tell, workers, THUMB, _thumbs)


def _encoded(
    dataset: Dataset | Sequence[Mapping],
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    name: str,
    tell: Tell,
    workers: int | None,
    types: dict[str, Any],
    encode: Callable[..., list[dict]],
) -> tuple[Dataset, dict[str, int]]:
    rows, kind, _ = checked(dataset, KINDS, name)
    _tell_unread(rows, kind, name, types, tell)
    if not isinstance(rows[0]["prompt"], str):
        set_chat_template(tokenizer)

    def tokenize(about: dict) -> Iterator[dict]:
        unread, counts = Counter[str](), Counter[str]()

        def encoded_row(row: dict, unread: Counter[str]) -> tuple[list[dict], Counter[str]]:
            count = Counter[str]()
            prompt = encode_prompt(tokenizer, row["prompt"], unread)
            answers = row["completions"] if "completions" in row else [row["completion"]]
            rows = [encode_completion(tokenizer, answer, eos=True) for answer in answers]
            fits = [limit is None or len(prompt) + len(ids) <= limit for ids in rows]
            count["answers that do not fit"] += fits.count(False)
            return encode(row, prompt, rows, fits, count), count

        for encoded, count in encoding(rows, encoded_row, name, unread, workers_for(workers, is_large(dataset))):
            counts.update(count)
            yield from encoded
        about |= {"unread": dict(unread), "counts": dict(counts)}

    key = partial(token_key, encode.__name__, dataset, tokenizer, kind, limit) if is_large(dataset) else None
    encoded, about = tokens_of(key, name, types, tokenize)
    warn_unread(Counter(about["unread"]), len(rows), name)
    counts = {"rows": len(rows), **{what: count for what, count in about["counts"].items() if count}}
    if not len(encoded):
        faults = ", ".join(f"{what} {count}" for what, count in counts.items())
        raise UserError(f"{name}: nothing is left to learn from ({faults}; max_length {limit}).")
    if len(counts) > 1:
        tell(f"{name}: of {len(rows)} rows: " + ", ".join(f"{what} {counts[what]}" for what in list(counts)[1:]))
    return encoded, counts


def _tell_unread(rows: Sequence[Mapping], kind: str, name: str, types: dict[str, Any], tell: Tell) -> None:
    if kind == "thumbs" and "label" not in types:
        raise UserError(
            f"{name} has thumbs (`label`), one answer to a prompt, and DPO compares answers to one. "
            "Train on them with `rlhf-kit kto`, or give rankings or pairs."
        )
    unread = [column for column in ("margin", "weight") if column not in types]
    ignored = [column for column in unread if any(row.get(column) for row in rows)]
    if ignored:
        tell(f"{name}: nothing reads the column {' and '.join(f'`{column}`' for column in ignored)} here")


def _lists(
    row: Mapping, prompt: list[int], answers: list[list[int]], fits: list[bool], count: Counter[str]
) -> list[dict]:
    kept = [(ids, rank) for ids, rank, fit in zip(answers, row["ranks"], fits, strict=True) if fit]
    pairs = [
        (first, second)
        for first, (_, rank) in enumerate(kept)
        for second, (_, other) in enumerate(kept)
        if rank < other
    ]
    if not pairs:
        count["lists without an ordered pair"] += 1
        return []
    weight = row.get("weight")
    longest = max(len(ids) for ids, _ in kept)
    return [
        {
            "prompt_ids": prompt,
            "answer_ids": [ids for ids, _ in kept],
            "better": [first for first, _ in pairs],
            "worse": [second for _, second in pairs],
            "weight": 1.0 if weight is None else float(weight),
            "length": len(prompt) + longest,
        }
    ]


def _thumbs(
    row: Mapping, prompt: list[int], answers: list[list[int]], fits: list[bool], count: Counter[str]
) -> list[dict]:
    if "label" in row:
        labels = [bool(row["label"])]
    else:
        middle = statistics.median(row["ranks"])
        labels = [None if rank == middle else rank < middle for rank in row["ranks"]]
        count["answers at the middle of their ranking"] += labels.count(None)
    return [
        {"prompt_ids": prompt, "completion_ids": ids, "label": label, "length": len(prompt) + len(ids)}
        for ids, label, fit in zip(answers, labels, fits, strict=True)
        if fit and label is not None
    ]


def answer_rows(prompts: Sequence[list[int]], answers: Sequence[list[int]], pad_token_id: int) -> dict[str, Tensor]:
    """Rows as TRL's losses read them: input_ids, attention_mask and completion_mask (N, T), padded on the right."""
    input_ids, lengths = pad_right([[*p, *a] for p, a in zip(prompts, answers, strict=True)], pad_token_id)
    mask = ops.length_mask(lengths, input_ids.shape[1])
    before = ops.length_mask(torch.tensor([len(prompt) for prompt in prompts]), input_ids.shape[1])
    return {"input_ids": input_ids, "attention_mask": mask.long(), "completion_mask": (mask & ~before).long()}
