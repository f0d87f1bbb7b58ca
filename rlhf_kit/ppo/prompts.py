"""Prompts as tokens, and the order in which rollouts take them."""

from __future__ import annotations

from functools import partial

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rlhf_kit.data.chat import encode_prompt
from rlhf_kit.data.refusals import encode_each
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
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_completion_length: int, limit: int | None
) -> list[dict]:
    """Rows with their `prompt_ids`, once it is sure that each leaves room for a completion in `limit` tokens."""
    prompts = encode_each(dataset["prompt"], partial(encode_prompt, tokenizer), "prompts")
    rows = [{**row, "prompt_ids": ids} for row, ids in zip(dataset, prompts, strict=True)]
    room = None if limit is None else limit - max_completion_length
    lengths = [len(row["prompt_ids"]) for row in rows]
    if 0 in lengths:
        raise UserError(
            f"The prompt of row {lengths.index(0)} has no tokens to go on from. Drop it, or say something."
        )
    long = [] if room is None else [(row, tokens) for row, tokens in enumerate(lengths) if tokens > room]
    if long:
        row, tokens = max(long, key=lambda item: item[1])
        raise UserError(
            f"{len(long)} of {len(rows)} prompts are too long: row {row} has {tokens} tokens, and the context of "
            f"{limit} leaves {room} beside max_completion_length={max_completion_length}. "
            "Shorten or drop these prompts, or lower max_completion_length."
        )
    return rows
