"""A cache of keys and values with memory allocated ahead, so that a token does not copy all before it.

Attention reads the columns in use alone. A cache of fixed shape (transformers' `StaticCache`) reads its whole room: it
serves CUDA graphs, which are not written as long as no GPU proves them, and on a CPU it is slower.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """Keys and values (B, H, N, D) of one layer, in room for `room` tokens, and half as much again when it is full.

    They are the columns from `start` to `end` of what has been allocated; if `wide` in float32 (see `attention.py`).
    """

    def __init__(self, room: int = 0, wide: bool = False):
        super().__init__()
        self.room, self.wide, self.start, self.end = room, wide, 0, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if self.wide:
            key_states, value_states = key_states.float(), value_states.float()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.all_keys, self.all_values = key_states[..., :0, :], value_states[..., :0, :]
            self._show(0, 0)
        new = key_states.shape[-2]
        if self.end + new > self.all_keys.shape[-2]:
            self._move(0, new)
        self._show(self.start, self.end + new)
        self.keys[..., -new:, :], self.values[..., -new:, :] = key_states, value_states
        return self.keys, self.values

    def shorten(self, length: int) -> None:
        """Forget the tokens after the first `length`."""
        self._show(self.start, self.start + length)

    def keep_last(self, length: int) -> None:
        """Forget the tokens before the last `length`."""
        self._show(self.end - length, self.end)

    def replace(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Other tokens in these rows (M,), (M, H, N, D) each: they end in the last column. What is before them stays,
        and is to be masked."""
        missing = keys.shape[-2] - (self.end - self.start)
        if missing > self.start:
            self._move(missing, 0)
        self._show(self.start - max(missing, 0), self.end)
        columns = slice(self.end - keys.shape[-2], self.end)
        self.all_keys[rows, :, columns], self.all_values[rows, :, columns] = keys, values

    def add_rows(self, count: int) -> None:
        """So many rows more, of which nothing was read: they are to be masked."""
        self.all_keys, self.all_values = (
            torch.cat([x, x.new_zeros(count, *x.shape[1:])]) for x in (self.all_keys, self.all_values)
        )
        self._show(self.start, self.end)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with some rows alone, in this order: the one selection that all kinds of layers have."""
        self.all_keys, self.all_values = self.all_keys[beam_idx], self.all_values[beam_idx]
        self._show(self.start, self.end)

    def _show(self, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.keys, self.values = self.all_keys[..., start:end, :], self.all_values[..., start:end, :]

    def _move(self, before: int, after: int) -> None:
        """What is held into new room, with at least so many columns before and after it."""
        length, size = self.end - self.start, self.all_keys.shape[-2]
        needed = before + length + after
        room = max(needed, self.room, size if 3 * needed <= 2 * size else size * 3 // 2)
        self.all_keys, self.all_values = (_moved(x, before, room) for x in (self.keys, self.values))
        self._show(before, before + length)


def _moved(old: Tensor, before: int, room: int) -> Tensor:
    """(B, H, N, D) -> (B, H, room, D), from column `before` on. What is masked must be finite, too."""
    new = old.new_empty(*old.shape[:-2], room, old.shape[-1])
    new[..., :before, :] = 0
    new[..., before : before + old.shape[-2], :] = old
    return new


def growing_cache(model: PreTrainedModel, room: int = 0, wide: bool = False) -> DynamicCache:
    """A cache with room for `room` tokens at first; layers that are not plain attention (sliding windows) stay
    transformers' own."""
    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer(room, wide) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def can_replace(cache: DynamicCache) -> bool:
    """Whether rows may be replaced by others of another length: where all layers are plain attention.

    A sliding window's layers hold a fixed number of the last columns, and a recurrent one's a state: they are read
    from the first token on, all rows at once.
    """
    return all(type(layer) is GrowingLayer for layer in cache.layers)
