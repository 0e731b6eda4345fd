from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from peftkit.errors import PeftkitError
from peftkit.stats import holm, iqm, mean_interval, p_value, paired_difference, probability_of_improvement


def test_mean_interval_by_hand():
    interval = mean_interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 / np.sqrt(3)  # t table: 0.975 at 2 degrees of freedom
    assert (interval.mean, interval.n, interval.sd) == (2.0, 3, 1.0)
    assert (interval.low, interval.high) == pytest.approx((2 - half, 2 + half))
    with pytest.raises(FrozenInstanceError):
        interval.mean = 0.0


def test_tasks_are_averaged_inside_each_seed():
    scores = [[0.2, 0.6], [0.3, 0.9], [0.1, 0.4]]
    assert mean_interval(scores) == mean_interval(np.mean(scores, axis=1))
    assert mean_interval(scores).n == 3


def test_a_higher_confidence_gives_a_wider_interval():
    scores = [0.5, 0.6, 0.8]
    assert mean_interval(scores, 0.99).high > mean_interval(scores, 0.95).high > mean_interval(scores, 0.5).high


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_covers_the_truth_as_often_as_it_says(seeds):
    draws = np.random.default_rng(0).normal(0.7, 0.05, size=(4000, seeds))
    intervals = [mean_interval(draw) for draw in draws]
    coverage = np.mean([interval.low <= 0.7 <= interval.high for interval in intervals])
    assert coverage == pytest.approx(0.95, abs=0.015)


def test_paired_difference_takes_the_shared_seed_noise_out():
    noise = np.array([-0.3, 0.0, 0.1, 0.2])
    interval = paired_difference(0.5 + noise + [0.01, 0.02, 0.03, 0.02], 0.5 + noise)
    assert interval.mean == pytest.approx(0.02)
    assert interval.low > 0.0
    assert interval.sd < 0.01


def test_paired_difference_matches_named_scores_by_seed():
    a = pd.Series([0.9, 0.7, 0.8], index=[44, 42, 43])
    b = {42: 0.6, 43: 0.6, 44: 0.6, 45: 0.0}
    interval = paired_difference(a, b)
    assert interval.n == 3
    assert (interval.mean, interval.sd) == pytest.approx((0.2, 0.1))
    shuffled = a.sort_index()
    assert paired_difference(shuffled, pd.Series(b)).mean == pytest.approx(interval.mean)


def test_p_value_of_a_paired_difference_is_the_paired_t_test():
    a, b = np.random.default_rng(1).normal(size=(2, 6))
    assert p_value(paired_difference(a, b)) == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue)
    assert p_value(mean_interval(a), null=0.3) == pytest.approx(scipy_stats.ttest_1samp(a, 0.3).pvalue)


def test_p_value_without_spread():
    assert p_value(mean_interval([0.5, 0.5]), null=0.5) == 1.0
    assert p_value(mean_interval([0.5, 0.5]), null=0.4) == 0.0


def test_p_value_is_below_alpha_exactly_when_the_interval_excludes_zero():
    for draw in np.random.default_rng(2).normal(0.5, 0.5, size=(100, 4)):
        interval = mean_interval(draw)
        assert (p_value(interval) < 0.05) == (interval.low > 0 or interval.high < 0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == pytest.approx([0.02])


def test_probability_of_improvement_by_hand():
    assert probability_of_improvement([3, 4, 5], [0, 1, 2]) == 1.0
    assert probability_of_improvement([1, 2, 3], [1, 2, 3]) == 0.5
    assert probability_of_improvement([1, 2, 3], [2, 2, 0]) == pytest.approx((1 + 2 + 3) / 9)  # 1: one win; 2: two ties
    assert probability_of_improvement([1, 2], [0, 0, 3]) == pytest.approx(4 / 6)


def test_probability_of_improvement_is_averaged_over_tasks_and_adds_up_to_one():
    a, b = [[3, 0], [4, 0]], [[1, 5], [2, 5], [0, 5]]
    assert probability_of_improvement(a, b) == 0.5
    x, y = np.random.default_rng(3).integers(0, 4, size=(2, 5, 3))
    assert probability_of_improvement(x, y) + probability_of_improvement(y, x) == pytest.approx(1.0)


def test_iqm_by_hand():
    assert iqm([1, 2, 3, 4, 5, 6, 7, 8]) == 4.5
    assert iqm([[0, 2], [4, 100]]) == 3.0
    assert iqm([1, 2, 6]) == 3.0


@pytest.mark.parametrize("function", [mean_interval, iqm])
@pytest.mark.parametrize("scores", [[], [0.5], [[0.5, 0.6, 0.7]], [0.5, np.nan], [0.5, np.inf], 0.5, [[[1]], [[2]]]])
def test_bad_scores_are_refused(function, scores):
    with pytest.raises(PeftkitError):
        function(scores)


@pytest.mark.parametrize("a, b", [
    ([0.5], [0.4]),
    ([0.5, 0.6], [0.4, 0.5, 0.6]),
    ([[0.5, 0.6], [0.5, 0.6]], [0.4, 0.5]),
    ({1: 0.5, 2: 0.6}, [0.4, 0.5]),
    ({1: 0.5, 2: 0.6}, {2: 0.5, 3: 0.6}),
    (pd.Series([0.5, 0.6, 0.7], index=[1, 1, 2]), {1: 0.4, 2: 0.5}),
    ({1: 0.5, 2: np.nan}, {1: 0.4, 2: 0.5}),
])
def test_scores_that_cannot_be_paired_are_refused(a, b):
    with pytest.raises(PeftkitError):
        paired_difference(a, b)


@pytest.mark.parametrize("a, b", [([0.5], [0.4, 0.3]), ([0.5, 0.4], [0.3]), ([[1, 2], [3, 4]], [1, 2])])
def test_probability_of_improvement_refuses_single_seeds_and_other_tasks(a, b):
    with pytest.raises(PeftkitError):
        probability_of_improvement(a, b)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_outside_0_and_1_is_refused(confidence):
    with pytest.raises(PeftkitError, match="confidence"):
        mean_interval([0.1, 0.2], confidence)


@pytest.mark.parametrize("p_values", [[], [0.5, 1.2], [0.1, np.nan], [[0.1]], 0.1])
def test_bad_p_values_are_refused(p_values):
    with pytest.raises(PeftkitError):
        holm(p_values)
