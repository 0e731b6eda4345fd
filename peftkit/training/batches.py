"""Batches of similar length in random order."""
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

WINDOW = 16  # batches whose examples are sorted by length together


class LengthBuckets(Sampler[list[int]]):
    """Lists of row numbers, a batch each. Every epoch shuffles anew: rows are shuffled, sorted by length within windows
    of WINDOW batches, cut into batches, and the batches are shuffled. The last, smaller batch is kept."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = np.asarray(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        order = rng.permutation(len(self.lengths))
        window = WINDOW * self.batch_size
        parts = [order[i:i + window] for i in range(0, len(order), window)]
        order = np.concatenate([part[self.lengths[part].argsort(kind="stable")] for part in parts])
        batches = [order[i:i + self.batch_size].tolist() for i in range(0, len(order), self.batch_size)]
        yield from (batches[i] for i in rng.permutation(len(batches)))
