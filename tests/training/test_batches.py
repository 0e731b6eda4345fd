"""Batches of similar length: every row once an epoch, in an order that the seed fixes."""
import numpy as np
import pytest

from peftkit.training.batches import WINDOW, LengthBuckets

LENGTHS = np.random.default_rng(0).integers(5, 60, size=203).tolist()


@pytest.mark.parametrize("size, batch_size", [(203, 8), (7, 8), (8, 8), (1, 1), (203, 1)])
def test_every_row_comes_once_an_epoch(size, batch_size):
    sampler = LengthBuckets(LENGTHS[:size], batch_size, seed=0)
    for _ in range(2):
        batches = list(sampler)
        assert sorted(row for batch in batches for row in batch) == list(range(size))
        assert len(batches) == len(sampler) == -(-size // batch_size)
        assert sorted(map(len, batches))[1:] == [batch_size] * (len(batches) - 1)  # at most one is smaller


def test_the_seed_fixes_the_order():
    first, same, other = (LengthBuckets(LENGTHS, 8, seed) for seed in (1, 1, 2))
    epochs = [list(first), list(first)]
    assert epochs == [list(same), list(same)]
    assert epochs[0] != epochs[1] and epochs[0] != list(other)


def test_batches_waste_little_on_padding():
    lengths = np.array(LENGTHS)

    def padded(batches):
        return sum(len(batch) * lengths[batch].max() for batch in batches) / lengths.sum()

    plain = [list(range(start, min(start + 8, 203))) for start in range(0, 203, 8)]
    assert padded(LengthBuckets(LENGTHS, 8, seed=0)) < 1.15 < 1.5 < padded(plain)


def test_batches_of_one_length_are_not_in_order_of_length():
    sampler = LengthBuckets(sorted(LENGTHS), 8, seed=0)
    longest = [max(sorted(LENGTHS)[row] for row in batch) for batch in sampler]
    assert longest != sorted(longest) and len(longest) > WINDOW


@pytest.mark.parametrize("size, batch_size", [(5, 15), (5, 8), (3, 2)])
def test_rows_about_one_picture_share_a_batch_unless_it_is_full(size, batch_size):
    groups = [[*range(start, min(start + size, 203))] for start in range(0, 203, size)]
    for batches in [list(LengthBuckets(LENGTHS, batch_size, 0, groups)) for _ in range(2)]:
        assert sorted(row for batch in batches for row in batch) == list(range(203))
        batch_of = {row: number for number, batch in enumerate(batches) for row in batch}
        spread = [len({batch_of[row] for row in group}) for group in groups]
        assert max(spread) <= 1 + -(-(size - 1) // batch_size)
        assert sum(spread) <= len(groups) + len(batches) * (batch_size % size > 0 or 203 % size > 0)


def test_groups_of_one_row_come_in_the_order_of_rows_without_groups():
    assert list(LengthBuckets(LENGTHS, 8, 0, [[row] for row in range(203)])) == list(LengthBuckets(LENGTHS, 8, 0))
