"""The order of the rows, drawn as torch and accelerate draw it, and kept as a tensor: 8 bytes a row, where their lists
of Python's numbers take 40 for as long as an epoch lasts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader, RandomSampler

AT_ONCE = 256  # numbers that are Python's


class Shuffled(RandomSampler):
    """`RandomSampler` without replacement, number for number."""

    def __iter__(self) -> Iterator[int]:
        size, generator = len(self.data_source), self.generator
        if generator is None:
            generator = torch.Generator()
            generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
        for first in range(0, self.num_samples + 1, size):  # the last draw is part of the generator's way
            order = torch.randperm(size, generator=generator)[: self.num_samples - first]
            for part in order.split(AT_ONCE):
                yield from part.tolist()


class SeededShuffled(SeedableRandomSampler, Shuffled):
    """accelerate's, which seeds each epoch, in `Shuffled`'s way."""


def keep_as_tensor(loader: DataLoader) -> DataLoader:
    """A loader of transformers' Trainer whose order, where it is drawn at random, takes 8 bytes a row."""
    sampler = loader.get_sampler() if hasattr(loader, "get_sampler") else loader.sampler
    kinds = {RandomSampler: Shuffled, SeedableRandomSampler: SeededShuffled}
    if type(sampler) in kinds and not sampler.replacement and len(sampler.data_source):
        sampler.__class__ = kinds[type(sampler)]
    return loader
