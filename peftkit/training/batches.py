"""Batches of similar length in random order; rows about one picture stay together."""
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

WINDOW = 16  # batches whose examples are sorted by length together


class LengthBuckets(Sampler[list[int]]):
    """Lists of row numbers, a batch each. Every epoch shuffles anew: groups of rows are shuffled, sorted by length
    within windows of WINDOW batches, cut into batches, and the batches are shuffled. The last, smaller batch is kept.

    groups: rows that belong together, each row in one group (by default alone); a group goes on in the next batch where
    one is full.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, groups: list[list[int]] | None = None):
        self.groups = groups or [[row] for row in range(len(lengths))]
        self.lengths = np.array([sum(lengths[row] for row in group) for group in self.groups])
        self.rows, self.batch_size, self.seed, self.epoch = len(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        order = rng.permutation(len(self.groups))
        window = max(1, WINDOW * self.batch_size * len(self.groups) // self.rows)
        parts = [order[i:i + window] for i in range(0, len(order), window)]
        order = np.concatenate([part[self.lengths[part].argsort(kind="stable")] for part in parts])
        rows = [row for group in order for row in self.groups[group]]
        batches = [rows[i:i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        yield from (batches[i] for i in rng.permutation(len(batches)))
