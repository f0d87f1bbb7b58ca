"""What a model has read, once, and the places in it from which to continue.

    d d d d d d d d d d d d | a b c | a c | c      the cache of one row: a dialogue, then three steps of writing
          ^       ^       ^                        continuations a, b and c begin at these places

Each token of a continuation sees the dialogue up to where it begins and its own tokens, at the positions they would
have alone: what a causal model computes is the same as in one row a continuation, but for the rounding of float32.
Nothing is copied, and all continuations of all rows make one forward a token.

Notation: G rows, W leaves of a row (continuations, or their beams), N tokens in the cache, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from rlhf_kit.errors import UserError
from rlhf_kit.generation.cache import GrowingLayer, growing_cache
from rlhf_kit.models import preflight
from rlhf_kit.models.forward import pad_right
from rlhf_kit.models.packed import attention_of, mask_for

NOWHERE = -1  # the place of padding
Answer = TypeVar("Answer")


class Contexts:
    """Rows of tokens in one KV cache; `read` extends them, `step` writes at leaves, `forget` takes that back.

    Args:
        rows: token lists; an empty one is a row that nothing was read of yet.
    """

    def __init__(self, model: PreTrainedModel, rows: Sequence[Sequence[int]]):
        self.model = model
        self.device = next(model.parameters()).device
        self.cache = growing_cache(model)
        self.rows: list[list[int]] = [[] for _ in rows]
        self.places = torch.empty(len(rows), 0, dtype=torch.long, device=self.device)  # (G, N) in its row
        self.read(rows)

    def read(self, chunks: Sequence[Sequence[int]]) -> None:
        """Read a chunk of tokens more in each row, which may be empty."""
        if not any(chunks):
            return
        ids, lengths = pad_right(chunks, 0)
        ids, lengths = ids.to(self.device), lengths.to(self.device)
        starts = torch.tensor([len(row) for row in self.rows], device=self.device)
        steps = torch.arange(ids.shape[1], device=self.device)
        places = torch.where(steps < lengths[:, None], starts[:, None] + steps, NOWHERE)
        if self.places.shape[1]:
            before = (self.places != NOWHERE)[:, None].expand(-1, len(steps), -1)
            causal = (steps[:, None] >= steps).expand(len(ids), -1, -1)
            self._forward(ids, places.clamp(min=0), torch.cat([before, causal], 2))
        else:  # padding stands behind: that a token sees only what is before it is mask enough
            self._forward(ids, None, torch.ones_like(ids))
        self.places = torch.cat([self.places, places], 1)
        self.rows = [[*row, *chunk] for row, chunk in zip(self.rows, chunks, strict=True)]

    def leaves(self, places: Sequence[Sequence[int]]) -> Tensor:
        """What a token at each of these places of each row would see. -> (G, W, N) bool."""
        ends = pad_right(places, 0)[0].to(self.device)
        return (self.places != NOWHERE)[:, None] & (self.places[:, None] < ends[:, :, None])

    def step(self, ids: Tensor, positions: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Write a token at every leaf. (G, W), (G, W), (G, W, N) -> logits (G, W, V), what they see now (G, W, N + W).

        Leaves of the next step inherit what theirs see from the rows of the second.
        """
        itself = torch.eye(ids.shape[1], dtype=torch.bool, device=self.device).expand(len(ids), -1, -1)
        seen = torch.cat([seen, itself], 2)
        return self._forward(ids, positions, seen, logits=ids.shape[1]), seen

    def forget(self) -> None:
        """Take back all steps: the cache holds again what was read."""
        for layer in self.cache.layers:
            layer.shorten(self.places.shape[1])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some rows alone, in this order."""
        index = torch.tensor(rows, device=self.device)
        self.cache.reorder_cache(index)
        self.places, self.rows = self.places[index], [self.rows[row] for row in rows]

    def _forward(self, ids: Tensor, positions: Tensor | None, mask: Tensor, logits: int = 1) -> Tensor:
        if mask.dim() == 3:
            mask = mask_for(self.model, mask[:, None], self.model.dtype)  # (G, 1, queries, keys)
        output = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True,
            logits_to_keep=logits,
        )  # fmt: skip
        return output.logits


def asked_once(decide: Callable[[PreTrainedModel], Answer]) -> Callable[[PreTrainedModel], Answer]:
    """`decide`, its answer kept for as long as the model lives: what it computes with is part of the question."""
    answers: WeakKeyDictionary[PreTrainedModel, dict] = WeakKeyDictionary()

    @wraps(decide)
    def answer(model: PreTrainedModel) -> Answer:
        known, how = answers.setdefault(model, {}), (model.config._attn_implementation, model.dtype, model.device)
        if how not in known:
            known[how] = decide(model)
        return known[how]

    return answer


def _random_texts(model: PreTrainedModel, tokens: int) -> Tensor:
    """(2, tokens), the same whenever it is called."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.get_text_config().vocab_size, (2, tokens), generator=generator)


@asked_once
def can_share(model: PreTrainedModel) -> bool:
    """Whether a model computes in `Contexts` what it computes in one row a continuation: tried on random tokens.

    Not those whose attention looks at more than mask and positions (ALiBi), forgets (sliding windows, state spaces) or
    takes no mask of this shape (flash attention).

    Raises:
        UserError: for a model that reads what is to come, of which no evaluation would be right.
    """
    preflight.check_texts(model, preflight.short_texts(model, _random_texts(model, 32).tolist()))
    takes = set(inspect.signature(type(model).forward).parameters)
    if not {"attention_mask", "position_ids", "past_key_values", "logits_to_keep"} <= takes:
        return False
    if attention_of(model) not in ("sdpa", "eager"):
        return False
    if not all(type(layer) is GrowingLayer for layer in growing_cache(model).layers):
        return False
    return preflight.tried(model, lambda: _sharing_gap(model, _random_texts(model, 8))) is None


def _sharing_gap(model: PreTrainedModel, ids: Tensor) -> float:
    """How far the logits are off after two steps at two places of two rows (2, 8)."""
    device = next(model.parameters()).device
    contexts = Contexts(model, ids[:, :6].tolist())
    first, last = ids[:, [3, 6]].to(device), ids[:, [4, 7]].to(device)
    places = torch.tensor([[3, 6], [3, 6]], device=device)
    _, seen = contexts.step(first, places, contexts.leaves(places.tolist()))
    shared, _ = contexts.step(last, places + 1, seen)
    return preflight.gap([*shared.float()], [preflight.alone(model, row)[[4, 7]] for row in ids.tolist()])


@asked_once
def can_cache(model: PreTrainedModel) -> bool:
    """Whether transformers' own loop may keep a cache of what it has read: tried on random tokens.

    Raises:
        UserError: where it writes from other logits than the model's without a cache, too.
    """
    ids = _random_texts(model, 6)
    faults = [preflight.tried(model, lambda how=how: _generation_gap(model, ids, how)) for how in (True, False)]
    if all(faults):
        raise UserError(f"{type(model).__name__} cannot be evaluated by what it writes: in `generate` {faults[1]}.")
    return faults[0] is None


def _generation_gap(model: PreTrainedModel, ids: Tensor, use_cache: bool) -> float:
    config = GenerationConfig(
        max_new_tokens=3, do_sample=False, use_cache=use_cache, output_logits=True, return_dict_in_generate=True,
        pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    ids = ids.to(next(model.parameters()).device)
    out = model.generate(ids, config, attention_mask=torch.ones_like(ids))
    start = ids.shape[1] - 1
    logits = torch.stack(out.logits, 1).float()
    if not torch.equal(logits.argmax(-1), out.sequences[:, start + 1 :]):  # the model's own settings force tokens
        return math.inf
    truth = [preflight.alone(model, row)[start : start + 3] for row in out.sequences.tolist()]
    return preflight.gap([*logits], truth)
