"""Prompts as tokens, and the order in which rollouts take them."""

from __future__ import annotations

from functools import partial

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rlhf_kit.data.chat import encode_prompt
from rlhf_kit.data.loading import checked
from rlhf_kit.data.refusals import encode_each
from rlhf_kit.data.templates import unread_in_prompt, warn_unread
from rlhf_kit.errors import UserError


def prompt_order(size: int, places: range, seed: int, shuffle: bool = True) -> list[int]:
    """Rows of the prompts at `places` of an endless sequence: pass after pass over `size` rows, each shuffled anew.

    A data set smaller than a rollout simply comes round again.
    """
    passes: dict[int, list[int]] = {}
    rows = []
    for place in places:
        number, offset = divmod(place, size)
        if number not in passes:
            generator = torch.Generator().manual_seed(seed + 7_919 * number)
            passes[number] = torch.randperm(size, generator=generator).tolist() if shuffle else list(range(size))
        rows.append(passes[number][offset])
    return rows


def encode_prompts(
    dataset: Dataset | list[dict],
    tokenizer: PreTrainedTokenizerBase,
    max_completion_length: int,
    limit: int | None,
    name: str = "train_dataset",
) -> list[dict]:
    """Rows with `prompt`, `prompt_ids` and all further columns as they stand, of rows of any kind (`data.prompts`).

    Raises UserError, calling the rows by `name`, for what no prompt is, and for a prompt that leaves no room for a
    completion in `limit` tokens.
    """
    rows, *_ = checked(dataset, ("prompts",), name)
    prompts = encode_each((row["prompt"] for row in rows), partial(encode_prompt, tokenizer), name)
    warn_unread((unread_in_prompt(tokenizer, row["prompt"]) for row in rows), len(rows), name)
    rows = [{**row, "prompt_ids": ids} for row, ids in zip(rows, prompts, strict=True)]
    room = None if limit is None else limit - max_completion_length
    lengths = [len(row["prompt_ids"]) for row in rows]
    if 0 in lengths:
        told = (
            f"{name}: the prompt of row {lengths.index(0) + 1} has no tokens to go on from; drop it, or say something."
        )
        raise UserError(told)
    long = [(row, tokens) for row, tokens in enumerate(lengths, start=1) if room is not None and tokens > room]
    if long:
        row, tokens = max(long, key=lambda item: item[1])
        raise UserError(
            f"{name}: {len(long)} of {len(rows)} prompts are too long: row {row} has {tokens} tokens, and the context "
            f"of {limit} leaves {room} beside max_completion_length={max_completion_length}. "
            "Shorten or drop these prompts, or lower max_completion_length."
        )
    return rows
