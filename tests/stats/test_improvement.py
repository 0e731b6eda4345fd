import numpy as np
import pandas as pd
import pytest

from peftkit.errors import PeftkitError
from peftkit.stats import iqm, probability_of_improvement


@pytest.mark.parametrize("a, b, probability, resolution", [
    ([3, 4, 5], [0, 1, 2], 1.0, 1 / 9),
    ([1, 2, 3], [1, 2, 3], 0.5, 1 / 18),
    ([1, 2, 3], [2, 2, 0], (1 + 2 + 3) / 9, 1 / 18),  # 1: one win; 2: one win and two ties
    ([1, 2], [0, 0, 3], 4 / 6, 1 / 6),
    ([[3, 0], [4, 0]], [[1, 5], [2, 5], [0, 5]], 0.5, 1 / 12),  # the first task always won, the second never
])
def test_probability_of_improvement_by_hand(a, b, probability, resolution):
    found = probability_of_improvement(a, b)
    assert (found.probability, found.resolution) == pytest.approx((probability, resolution))


@pytest.mark.parametrize("values", [4, 1000])  # with and without ties
def test_the_probability_is_a_multiple_of_its_resolution_and_adds_up_to_one(values):
    scores = np.random.default_rng(3).permuted(np.tile(np.arange(30) % values, (20, 1)), axis=1)
    for x, y in scores.reshape(20, 2, 5, 3):
        forth, back = probability_of_improvement(x, y), probability_of_improvement(y, x)
        assert forth.probability + back.probability == pytest.approx(1.0)
        steps = forth.probability / forth.resolution
        assert steps == pytest.approx(round(steps), abs=1e-9)


def test_the_smallest_change_of_ranks_moves_the_probability_by_the_resolution():
    a, b = np.arange(15.0).reshape(5, 3), np.arange(15.0).reshape(5, 3)[::-1] + 0.5
    before = probability_of_improvement(a, b)
    assert a[1, 0] == b[-1, 0] + 2.5  # raise that run of b above this one of a only
    b[-1, 0] += 2.6
    assert probability_of_improvement(a, b).probability == pytest.approx(before.probability - before.resolution)


def test_named_tasks_are_matched():
    a = pd.DataFrame({"vqa": [0.9, 0.8], "ocr": [0.1, 0.2]})
    b = pd.DataFrame({"ocr": [0.0, 0.0], "vqa": [0.5, 0.5]})
    assert probability_of_improvement(a, b).probability == 1.0


@pytest.mark.parametrize("a, b", [([0.5], [0.4, 0.3]), ([0.5, 0.4], [0.3]), ([[1, 2], [3, 4]], [1, 2])])
def test_probability_of_improvement_refuses_single_seeds_and_other_tasks(a, b):
    with pytest.raises(PeftkitError):
        probability_of_improvement(a, b)


def test_iqm_by_hand():
    assert iqm([1, 2, 3, 4, 5, 6, 7, 8]) == 4.5
    assert iqm([[0, 2], [4, 100]]) == 3.0
    assert iqm([1, 2, 6]) == 3.0
