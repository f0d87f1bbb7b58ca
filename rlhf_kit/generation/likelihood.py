"""Log-likelihood of continuations, for any causal LM: what multiple choice, LAMBADA and perplexity are measured by.

All continuations of a context share one forward: a row of the context and a branch for each of them
(`models.prefix`), exact but for the rounding of float32. The last token of a continuation is never read, so that
continuations of one token cost nothing beyond their context.

    context c c c c, continuations a1 a2 and b1 b2 b3:    one row  c c c c a1 b1 b2
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_kit.errors import UserError
from rlhf_kit.generation.contexts import can_share
from rlhf_kit.generation.decoding import DEFAULT_BATCH_TOKENS
from rlhf_kit.models.forward import context_length
from rlhf_kit.models.packed import mask_for
from rlhf_kit.models.prefix import shared_prefix, tree_mask, tree_rows
from rlhf_kit.models.room import Room

PADDING = 0.1  # the most of a row that is padding: on a CPU that costs as much as a token


@dataclass(frozen=True)
class Likelihood:
    """Of one continuation: of each token the log-probability in nats, and whether no other was likelier there."""

    logprobs: list[float]
    greedy: list[bool]

    @property
    def total(self) -> float:
        return math.fsum(self.logprobs)

    @property
    def per_token(self) -> float:
        return self.total / len(self.logprobs)


@dataclass(frozen=True)
class Request:
    """A context and the continuations whose likelihood after it is asked for: token ids, none of them empty."""

    context: Sequence[int]
    continuations: Sequence[Sequence[int]]


@torch.inference_mode()
def likelihoods(
    model: PreTrainedModel, requests: Sequence[Request], max_batch_tokens: int = DEFAULT_BATCH_TOKENS
) -> Iterator[tuple[int, list[Likelihood]]]:
    """(number of a request, its continuations' likelihoods in order), as batches are done: not in the given order.

    Args:
        max_batch_tokens: bounds rows x tokens of a batch; a row alone may be longer. Changes no result (float32).

    Raises:
        UserError: for a context and continuation that the model cannot read.
    """
    _check_room(model, requests)
    whole = [[[*request.context, *ids[:-1]] for ids in request.continuations] for request in requests]
    if can_share(model):
        units = [(number, range(len(rows))) for number, rows in enumerate(whole)]
    else:
        units = [(number, range(at, at + 1)) for number, rows in enumerate(whole) for at in range(len(rows))]
    rows = [[whole[number][at] for at in branches] for number, branches in units]
    unfinished: dict[int, dict[int, Likelihood]] = {}
    for batch in _batches(rows, max_batch_tokens):
        targets = [
            [requests[number].continuations[at] for at in branches] for number, branches in (units[i] for i in batch)
        ]
        for unit, likely in zip(batch, _forward(model, [rows[i] for i in batch], targets), strict=True):
            number, branches = units[unit]
            of_request = unfinished.setdefault(number, {})
            of_request.update(zip(branches, likely, strict=True))
            if len(of_request) == len(whole[number]):
                yield number, [unfinished[number][at] for at in range(len(whole[number]))]
                del unfinished[number]


def windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, start, end) of pieces of a text: tokens start .. end - 1 are scored after those from begin on.

    The first piece scores all it reads, each further one the next `stride` tokens; every piece reads at most `window`
    tokens, and all but the first exactly as many where the text has them. The first token is only read.

    >>> list(windows(10, 4, 2))
    [(0, 1, 5), (2, 5, 7), (4, 7, 9), (5, 9, 10)]
    """
    start, end = 1, min(length, window + 1)
    while start < length:
        yield max(0, end - 1 - window), start, end
        start, end = end, min(length, end + stride)


def room_before(continuations: Sequence[Sequence[int]], limit: int | None) -> Room:
    """For the context of a request, where the model reads `limit` tokens: the last of a continuation is not read."""
    return Room(limit, max(map(len, continuations), default=1) - 1, "its longest continuation")


def _check_room(model: PreTrainedModel, requests: Sequence[Request]) -> None:
    limit = context_length(model.config)
    for number, request in enumerate(requests, start=1):
        room = room_before(request.continuations, limit)
        if not room.holds(len(request.context)):
            raise UserError(f"The prompt of request {number} {room.lacks(len(request.context))}. Shorten it.")


def _batches(rows: Sequence[Sequence[Sequence[int]]], max_batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of trees in batches with little padding, the longest first; those without branches need no mask."""
    sizes, branch = [_tree_size(of_tree) for of_tree in rows], [_branches(of_tree) for of_tree in rows]
    order = sorted(range(len(rows)), key=lambda at: (branch[at], -sizes[at]))
    while order:
        first = order[0]
        room = max(1, max_batch_tokens // sizes[first])
        batch = [
            at for at in order[:room] if branch[at] == branch[first] and sizes[at] >= (1 - PADDING) * sizes[first]
        ]
        yield batch
        order = order[len(batch) :]


def _branches(rows: Sequence[Sequence[int]]) -> bool:
    return any(row != rows[0] for row in rows)


def _tree_size(rows: Sequence[Sequence[int]]) -> int:
    shared = shared_prefix(rows)
    return shared + sum(len(row) - shared for row in rows)


def _forward(
    model: PreTrainedModel, trees: Sequence[Sequence[Sequence[int]]], targets: Sequence[Sequence[Sequence[int]]]
) -> list[list[Likelihood]]:
    """Likelihoods of the last tokens of each row of each tree and the token after it: `targets`, by tree and row."""
    device = next(model.parameters()).device
    tree = tree_rows(trees, 0)
    places = [
        [_places(row, len(ids), shared_prefix(rows), end) for row, ids, end in zip(rows, of_rows, ends, strict=False)]
        for rows, of_rows, ends in zip(trees, targets, tree["ends"].tolist(), strict=True)
    ]
    tokens = torch.tensor([token for wanted in targets for ids in wanted for token in ids], device=device)
    columns = [place for of_tree in places for of_row in of_tree for place in of_row]
    rows = [row for row, of_tree in enumerate(places) for of_row in of_tree for _ in of_row]
    with _logits_at(model, torch.tensor(rows, device=device), torch.tensor(columns, device=device)):
        output = model(
            input_ids=tree["input_ids"].to(device), use_cache=False, **_arguments(model, tree, trees, device)
        )
    logprobs, greedy = _scored(output.logits[0], tokens)
    each = zip(logprobs, greedy, strict=True)
    return [
        [Likelihood(*map(list, zip(*islice(each, len(ids)), strict=True))) for ids in of_tree] for of_tree in targets
    ]


@contextmanager
def _logits_at(model: PreTrainedModel, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Only these N places of a batch go through the model's head, which may cost as much as all else: (1, N, V)."""

    def gather(head, inputs):
        return (inputs[0][rows, columns][None], *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def _places(row: Sequence[int], count: int, shared: int, end: int) -> list[int]:
    """Where in a tree the last `count` tokens of one of its rows stand, which ends at `end`."""
    return [at if at < shared else end - (len(row) - 1 - at) for at in range(len(row) - count, len(row))]


def _arguments(model: PreTrainedModel, tree: dict[str, Tensor], trees, device: torch.device) -> dict[str, Tensor]:
    """Mask and positions: none where each token sees just those before it, padding standing behind."""
    if not any(map(_branches, trees)):
        return {"attention_mask": (tree["segments"] >= 0).long().to(device)}
    mask = mask_for(model, tree_mask(tree["segments"].to(device)), model.dtype)
    return {"attention_mask": mask, "position_ids": tree["position_ids"].to(device)}


def _scored(logits: Tensor, tokens: Tensor) -> tuple[list[float], list[bool]]:
    """(N, V), (N,) -> log-probability of each token, and whether it is the likeliest; in float32."""
    logits = logits.float()
    chosen = logits.gather(1, tokens[:, None])[:, 0]
    return (chosen - logits.logsumexp(1)).tolist(), (chosen >= logits.amax(1)).tolist()
