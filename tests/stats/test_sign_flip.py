from itertools import product

import numpy as np
import pytest
from scipy import stats as scipy_stats

from peftkit.errors import PeftkitError
from peftkit.stats import sign_flip


def test_sign_flip_by_hand():
    found = sign_flip([1, 2, 3, 4, 5, -6])  # sum 9: subsets of 1..6 with sum 6 or less are flipped as far as measured
    subsets = sum(sum(chosen) <= 6 for chosen in product(*((0, size) for size in range(1, 7))))
    assert subsets == 14
    assert found.p == 2 * subsets / 64
    assert (found.floor, found.n, found.reason) == (2 / 64, 6, "")


@pytest.mark.parametrize("steps", [50, 7, 1000])
def test_sign_flip_enumerates_all_patterns_also_when_scores_on_a_grid_tie(steps):
    for counts in np.random.default_rng(steps).integers(-5, 8, size=(40, 7)):
        sums = [abs(sum(sign * count for sign, count in zip(signs, counts))) for signs in product([1, -1], repeat=7)]
        by_hand = np.mean(np.array(sums) >= abs(counts.sum()))
        found = sign_flip(counts / steps, alpha=0.99)
        assert found.p == pytest.approx(by_hand) if found.floor < 0.99 else found.p is None


def test_sign_flip_agrees_with_scipy_where_nothing_ties():
    for draw in np.random.default_rng(0).normal(0.5, 1.0, size=(20, 8)):
        theirs = scipy_stats.permutation_test((draw,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert sign_flip(draw).p == pytest.approx(theirs.pvalue)


def test_all_differences_of_one_sign_reach_the_floor():
    found = sign_flip([0.1, 0.2, 0.1, 0.3, 0.1, 0.4, 0.2])
    assert found.p == found.floor == 2 / 2**7


@pytest.mark.parametrize("differences, alpha, floor", [
    ([1.0, 2.0, 3.0], 0.05, 0.25),
    ([1.0, 2.0, 3.0, 4.0, 5.0], 0.05, 0.0625),
    ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.01, 0.03125),
    ([1.0, 2.0, 3.0], 0.25, 0.25),  # a floor of alpha itself is not below it
    ([1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 1e-17], 0.05, 0.0625),  # zeros cannot be flipped
    ([0.0, 0.0], 0.05, 1.0),
])
def test_without_a_reachable_p_the_reason_is_given_instead(differences, alpha, floor):
    found = sign_flip(differences, alpha)
    assert found.p is None
    assert found.floor == floor
    assert f"{floor:g}" in found.reason and f"{alpha:g}" in found.reason


def test_tasks_are_averaged_before_signs_are_flipped():
    scores = np.random.default_rng(1).normal(0.3, 1.0, size=(7, 4))
    assert sign_flip(scores) == sign_flip(scores.mean(axis=1))


@pytest.mark.parametrize("kind", ["normal", "laplace", "standard_t"])
def test_sign_flip_errs_at_most_as_often_as_it_says(kind):
    """p is a multiple of 1/64, so 4/64 is above 5 % and 2/64 = 3.1 % is the true level (simulation sd 0.4 %)."""
    draws = getattr(np.random.default_rng(2), kind)(**({"df": 2} if kind == "standard_t" else {}), size=(2000, 6))
    assert np.mean([sign_flip(draw).p < 0.05 for draw in draws]) == pytest.approx(2 / 64, abs=0.016)


@pytest.mark.parametrize("differences, alpha", [([0.1], 0.05), (np.ones(17), 0.05), ([0.1, np.nan], 0.05),
                                                (np.ones(6), 0), (np.ones(6), 5)])
def test_too_few_or_too_many_seeds_or_an_impossible_alpha_are_refused(differences, alpha):
    with pytest.raises(PeftkitError):
        sign_flip(differences, alpha)
