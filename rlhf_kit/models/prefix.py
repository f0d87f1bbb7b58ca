"""One row for all answers to a prompt: the prompt once, then every answer, which sees the prompt and itself alone.

    p p p a a b b b      positions 0 1 2 3 4 3 4 5, segments 0 0 0 1 1 2 2 2

A causal model computes the same in such a tree as in one row an answer, since nothing in the prompt could see the
answers anyway: exact but for the rounding of float32, at the price of the prompt once.

Notation: G lists, K answers of the longest list, T tokens of the longest row.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlhf_kit.errors import UserError
from rlhf_kit.models.forward import pad_right, unwrapped
from rlhf_kit.models.heads import scores_at, sequence_scores
from rlhf_kit.models.packed import attention_of, mask_for
from rlhf_kit.models.preflight import gap, tried

PADDING = -1  # the segment of no answer


def shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with.

    >>> shared_prefix([[5, 6, 7, 8], [5, 6, 9], [5, 6, 7]])
    2
    """
    shortest, longest = min(rows), max(rows)
    same = (i for i, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b)
    return next(same, min(map(len, rows)))


def tree_rows(lists: Sequence[Sequence[Sequence[int]]], pad_token_id: int | None) -> dict[str, Tensor]:
    """Lists of full rows (prompt + answer) as trees.

    -> input_ids, position_ids, segments (G, T): 0 the prompt, k = 1 .. K an answer, -1 padding; ends (G, K): where
    the last token of each answer stands, 0 for answers that a list does not have.
    """
    ids, positions, segments, ends = [], [], [], []
    for rows in lists:
        shared = shared_prefix(rows)
        row, places, marks, last = [*rows[0][:shared]], [*range(shared)], [0] * shared, []
        for number, answer in enumerate(rows, start=1):
            row += answer[shared:]
            places += range(shared, len(answer))
            marks += [number] * (len(answer) - shared)
            # An answer that is the beginning of all others ends in the shared part.
            last.append(len(row) - 1 if len(answer) > shared else shared - 1)
        ids.append(row)
        positions.append(places)
        segments.append(marks)
        ends.append(last)
    return {
        "input_ids": pad_right(ids, pad_token_id)[0],
        "position_ids": pad_right(positions, 0)[0],
        "segments": pad_right(segments, PADDING)[0],
        "ends": pad_right(ends, 0)[0],
    }


def tree_mask(segments: Tensor) -> Tensor:
    """Who sees whom: all that stands before in the prompt or the same answer. (G, T) -> (G, 1, T, T) bool.

    Padding sees itself, so that no row of the softmax is empty.
    """
    size = segments.shape[1]
    before = torch.ones(size, size, dtype=torch.bool, device=segments.device).tril()
    queries, keys = segments[:, :, None], segments[:, None, :]
    return (((keys == 0) | (keys == queries)) & before)[:, None]


def tree_scores(model: nn.Module, tree: dict[str, Tensor]) -> Tensor:
    """Raw scores of all answers of `tree_rows`, with gradients. -> (G, K) float32; of missing answers meaningless."""
    inner = unwrapped(model)
    mask = mask_for(inner, tree_mask(tree["segments"]), torch.float32)
    with scores_at(inner, tree["ends"]):
        output = model(
            input_ids=tree["input_ids"], attention_mask=mask, position_ids=tree["position_ids"], use_cache=False
        )
    return output.logits.float()


def check_shared_prefix(model: nn.Module) -> None:
    """Refuse a model whose scores would change: tried on two lists of random tokens.

    Raises:
        UserError: for an encoder, an attention that takes no mask of this shape, or scores that differ.
    """
    inner = unwrapped(model)
    name, attention = type(inner).__name__, attention_of(inner)
    takes = inspect.signature(type(inner).forward).parameters
    if not hasattr(inner, "score") or not {"position_ids", "use_cache"} <= set(takes):
        raise UserError(f"shared_prefix: {name} is not a causal model with positions to set. Leave shared_prefix out.")
    if attention not in ("sdpa", "eager"):
        raise UserError(f"shared_prefix needs attn_implementation 'sdpa' or 'eager'; it is {attention!r}.")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, inner.config.get_text_config().vocab_size, (2, 9), generator=generator).tolist()
    lists = [[row, row[:4] + row[6:], row[:5] + row[2:4]] for row in ids]
    device = next(inner.parameters()).device

    def compare() -> float:
        tree = {key: value.to(device) for key, value in tree_rows(lists, 0).items()}
        input_ids, lengths = pad_right([row for rows in lists for row in rows], 0)
        alone = sequence_scores(model, input_ids.to(device), lengths)
        return gap([tree_scores(model, tree).flatten()], [alone])

    fault = tried(model, compare, "its scores are")
    if fault:
        raise UserError(
            f"shared_prefix: {name} gives other scores with the prompt shared ({fault}): its attention depends on "
            "more than mask and positions. Leave shared_prefix out."
        )
