"""Log-probs of tokens that are there already: of a prompt, each token after those before it, with the likeliest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from rlhf_kit.generation.drawn import Drawn, Told
from rlhf_kit.models.forward import pad_right, taken

BATCH_TOKENS = 1024  # of a forward, padding counted: the logits of all of them are in memory at once
PLACES = 128  # whose log-probs over the vocabulary are computed together


def batches(rows: Sequence[Sequence[int]], most: int = BATCH_TOKENS) -> list[list[int]]:
    """Numbers of rows that are read together, of like length; a row alone may be longer than `most`.

    >>> batches([[1] * 3, [1] * 9, [1] * 4], 8)
    [[0, 2], [1]]
    """
    parts: list[list[int]] = []
    for number in sorted(range(len(rows)), key=lambda number: len(rows[number])):
        if not parts or len(rows[number]) * (len(parts[-1]) + 1) > most:
            parts.append([])
        parts[-1].append(number)
    return parts


@torch.no_grad()
def prompt_logprobs(model: PreTrainedModel, rows: Sequence[Sequence[int]], count: int) -> list[list[Drawn]]:
    """Of each row, in one forward, its tokens from the second on, with the `count` likeliest at their places."""
    ids, lengths = pad_right(rows, 0)
    device = next(model.parameters()).device
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    inputs = taken(model, input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    return [_row(logits, row, count) for logits, row in zip(model(**inputs).logits, rows, strict=True)]


def _row(logits: torch.Tensor, row: Sequence[int], count: int) -> list[Drawn]:
    """Beyond its logits (T, V), which the model gives, only those of `PLACES` are in memory, in float32."""
    tokens = torch.tensor(row[1:], device=logits.device).split(PLACES)
    parts = zip(logits[: len(row) - 1].split(PLACES), tokens, strict=True)
    return [told.of(at, count) for told in (Told(*part, count) for part in parts) for at in range(len(told.tokens))]
