"""A cache of keys and values with memory allocated ahead, so that a token does not copy all before it."""

from __future__ import annotations

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """Keys and values (B, H, N, D) of one layer, in room for `room` tokens, and half as much again when it is full."""

    def __init__(self, room: int = 0):
        super().__init__()
        self.room, self.length = room, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.all_keys, self.all_values = key_states[..., :0, :], value_states[..., :0, :]
        end = self.length + key_states.shape[-2]
        size = self.all_keys.shape[-2]
        if end > size:
            room = max(end, self.room, size * 3 // 2)
            self.all_keys, self.all_values = (_moved(x, room) for x in (self.all_keys, self.all_values))
        self.all_keys[..., self.length : end, :] = key_states
        self.all_values[..., self.length : end, :] = value_states
        self.shorten(end)
        return self.keys, self.values

    def shorten(self, length: int) -> None:
        """Forget the tokens after the first `length`."""
        self.length = length
        self.keys, self.values = self.all_keys[..., :length, :], self.all_values[..., :length, :]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with some rows alone, in this order: the one selection that all kinds of layers have."""
        self.all_keys, self.all_values = self.all_keys[beam_idx], self.all_values[beam_idx]
        self.shorten(self.length)


def _moved(old: Tensor, room: int) -> Tensor:
    """(B, H, N, D) -> (B, H, room, D)."""
    new = old.new_empty(*old.shape[:-2], room, old.shape[-1])
    new[..., : old.shape[-2], :] = old
    return new


def growing_cache(model: PreTrainedModel, room: int = 0) -> DynamicCache:
    """A cache with room for `room` tokens at first; layers that are not plain attention (sliding windows) stay
    transformers' own."""
    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
