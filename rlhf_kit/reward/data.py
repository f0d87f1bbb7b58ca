"""Comparisons as token ids, and batches of them.

Notation: G prompts ("lists") in a batch, N answers of all of them, T tokens of the longest row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import datasets
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_kit.data.chat import encode_completion, encode_prompt, encoding, set_chat_template
from rlhf_kit.data.loading import checked
from rlhf_kit.data.rows import is_large
from rlhf_kit.data.store import token_key
from rlhf_kit.data.templates import warn_unread
from rlhf_kit.data.tokens import IDS, tokens_of
from rlhf_kit.data.workers import workers_for
from rlhf_kit.errors import UserError
from rlhf_kit.models.forward import pad_right
from rlhf_kit.models.heads import PLAIN, RowFormat, fit_context
from rlhf_kit.models.prefix import PADDING, tree_rows

KINDS = ("ranked", "pairs", "thumbs")
WEIGHED = {"weight": datasets.Value("float64"), "length": datasets.Value("int64")}
THUMB = {"input_ids": datasets.List(IDS), "thumb": datasets.Value("bool")} | WEIGHED
RANKS = {"ranks": datasets.List(datasets.Value("int64")), "margin": datasets.Value("float64")}
RANKING = {"input_ids": datasets.List(IDS)} | RANKS | WEIGHED
IDENTICAL, TIED = "identical answers", "all answers tied"  # nothing is wrong with such lists, and nothing to learn


def _row(
    prompt: list[int], completion: list[int], limit: int | None, row_format: RowFormat
) -> tuple[list[int] | None, bool]:
    """The row of one answer (None: longer than the limit by itself), and whether its prompt was cut."""
    ids = fit_context(prompt, completion, limit, row_format)
    return ids, ids is not None and len(ids) < len(fit_context(prompt, completion, None, row_format))


def _encode_ranking(
    row: dict,
    prompt: list[int],
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    row_format: RowFormat,
    ties_teach: bool,
) -> dict:
    rows, ranks, cuts = [], [], 0
    for completion, rank in zip(row["completions"], row["ranks"], strict=True):
        ids, cut = _row(prompt, encode_completion(tokenizer, completion, eos=False), limit, row_format)
        if ids is not None:
            rows.append(ids)
            ranks.append(rank)
            cuts += cut
    ranks_of = {tuple(ids): set() for ids in rows}
    for ids, rank in zip(rows, ranks, strict=True):
        ranks_of[tuple(ids)].add(rank)
    fault = ""
    if len(rows) < 2:
        fault = "fewer than two answers"
    elif any(len(places) > 1 for places in ranks_of.values()):
        fault = "one answer with two ranks"
    elif len(ranks_of) == 1:
        fault = IDENTICAL
    elif len(set(ranks)) == 1 and not ties_teach:
        fault = TIED
    weight = row.get("weight")
    return {
        "input_ids": rows,
        "ranks": ranks,
        "margin": float(row.get("margin") or 0.0),
        "weight": 1.0 if weight is None else float(weight),
        "length": max(map(len, rows), default=0),
        "prompts_cut": cuts,
        "too_long": len(row["completions"]) - len(rows),
        "fault": fault,
    }


def _encode_thumb(
    row: dict,
    prompt: list[int],
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    row_format: RowFormat,
    ties_teach: bool,
) -> dict:
    ids, cut = _row(prompt, encode_completion(tokenizer, row["completion"], eos=False), limit, row_format)
    return {
        "input_ids": [ids or []],
        "thumb": bool(row["label"]),
        "weight": 1.0,
        "length": len(ids or []),
        "prompts_cut": int(cut),
        "too_long": int(ids is None),
        "fault": "" if ids else "no answer",
    }


def encode_comparisons(
    dataset: Dataset | list[dict],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    ties_teach: bool = False,
    on_bad_row: str = "drop",
    row_format: RowFormat = PLAIN,
    name: str = "the dataset",
    workers: int | None = None,
) -> tuple[Dataset, dict[str, int]]:
    """Rankings, pairs or thumbs as token ids, and counts of what was cut or dropped.

    All become `input_ids` (answers x tokens), without the final EOS.

    Args:
        ties_teach: keep a list in which all answers tie.
        on_bad_row: "drop" leaves out a list that is wrong (`data.checks`), with fewer than two answers that fit, or
            with one answer under two ranks; "error" refuses them. A list that teaches nothing, its answers equal or
            all tied, is always left out.
        row_format: what the model reads around prompt and answer. name: of the rows. workers: `workers_for`.

    Raises:
        UserError: for rows of another kind, when nothing is left, or for bad lists (with their row numbers).
    """
    rows, kind, dropped = checked(dataset, KINDS, name, on_bad_row)
    if not isinstance(rows[0]["prompt"], str):
        set_chat_template(tokenizer)
    encode = _encode_thumb if kind == "thumbs" else _encode_ranking
    how = dict(limit=max_length, row_format=row_format, ties_teach=ties_teach)

    def tokenize(about: dict) -> Iterator[dict]:
        unread, sums = Counter[str](), Counter[str]()
        bad: dict[str, list[int]] = {}

        def encoded_row(row: dict, counts: Counter[str]) -> dict:
            return encode(row, encode_prompt(tokenizer, row["prompt"], counts), tokenizer, **how)

        count = workers_for(workers, is_large(dataset))
        for number, row in enumerate(encoding(rows, encoded_row, name, unread, count), start=1):
            sums.update({count: row.pop(count) for count in ("prompts_cut", "too_long")})
            if fault := row.pop("fault"):
                bad.setdefault(fault, []).append(number)
            else:
                yield row
        about |= {"unread": dict(unread), "sums": dict(sums), "bad": dict(sorted(bad.items()))}

    key = partial(
        token_key, "comparisons", dataset, tokenizer, kind, on_bad_row, max_length, ties_teach, repr(row_format)
    )
    types = THUMB if kind == "thumbs" else RANKING
    encoded, about = tokens_of(key if is_large(dataset) else None, name, types, tokenize)
    warn_unread(Counter(about["unread"]), len(rows), name)
    bad, sums = about["bad"], about["sums"]
    counts = {
        "lists": len(rows) + sum(dropped.values()),
        "prompts cut at the beginning": sums["prompts_cut"],
        "answers longer than the context": sums["too_long"],
        **{f"lists dropped: {fault}": count for fault, count in dropped.items()},
        **{f"lists dropped: {fault}": len(numbers) for fault, numbers in bad.items()},
    }
    wrong = {fault: numbers for fault, numbers in bad.items() if fault not in (IDENTICAL, TIED)}
    if wrong and on_bad_row == "error":
        faults = "; ".join(f"{len(numbers)} with {fault} (row {_first(numbers)})" for fault, numbers in wrong.items())
        raise UserError(
            f"Of {len(rows)} lists there are {faults}. Fix them, or give on_bad_row=drop to leave them out."
        )
    if not len(encoded):
        faults = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(f"No comparison is left to learn from ({faults}; max_length {max_length}).")
    return encoded, counts


def _first(numbers: Sequence[int], shown: int = 5) -> str:
    return ", ".join(map(str, numbers[:shown])) + (", ..." if len(numbers) > shown else "")


@dataclass
class ComparisonCollator:
    """Lists as one batch: groups (N,) = which list an answer belongs to, weights (G,) of the lists; ranks (N,) and
    margins (N,) for rankings, thumbs (N,) bool otherwise; and the rows, either one an answer, padded on the right:
    input_ids (N, T), lengths (N,); or one a list, with its prompt shared: what `models.prefix.tree_rows` gives.

    Args:
        bucketed: cut the batch into `parts` of rows of like lengths, each a forward of its own, so that hardly any
            padding is computed. Several processes must not: all have to make as many forwards.
    """

    pad_token_id: int
    shared_prefix: bool = False
    bucketed: bool = True

    def __call__(self, lists: list[dict]) -> dict[str, Tensor]:
        sizes = torch.tensor([len(item["input_ids"]) for item in lists])
        groups = torch.arange(len(lists)).repeat_interleave(sizes)
        batch = {"groups": groups, "weights": torch.tensor([item["weight"] for item in lists], dtype=torch.float32)}
        if self.shared_prefix:
            batch |= tree_rows([item["input_ids"] for item in lists], self.pad_token_id) | {"sizes": sizes}
            lengths = (batch["segments"] != PADDING).sum(1)
        else:
            batch["input_ids"], lengths = pad_right(
                [ids for item in lists for ids in item["input_ids"]], self.pad_token_id
            )
            batch["lengths"] = lengths
        batch["parts"] = list(parts_of_like_length(lengths.tolist())) if self.bucketed else []
        if "thumb" in lists[0]:
            return {**batch, "thumbs": torch.tensor([item["thumb"] for item in lists])}
        margins = torch.tensor([item["margin"] for item in lists], dtype=torch.float32)
        ranks = torch.tensor([rank for item in lists for rank in item["ranks"]])
        return {**batch, "ranks": ranks, "margins": margins[groups]}


def parts_of_like_length(lengths: Sequence[int], most_padding: float = 0.1) -> Iterator[tuple[list[int], int]]:
    """(rows, longest length) of parts of which at most a tenth is padding, the longest first.

    >>> list(parts_of_like_length([3, 10, 9, 2]))
    [([1, 2], 10), ([0], 3), ([3], 2)]
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    rows: list[int] = []
    tokens = 0
    for row in order:
        longest = lengths[rows[0]] if rows else lengths[row]
        if rows and tokens + lengths[row] < (1 - most_padding) * longest * (len(rows) + 1):
            yield rows, longest
            rows, tokens = [], 0
        rows.append(row)
        tokens += lengths[row]
    yield rows, lengths[rows[0]]
