from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from peftkit.errors import PeftkitError
from peftkit.stats import iqm, mean_interval, p_value, paired_difference


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


def test_paired_difference_matches_frames_by_seed_and_task():
    a = pd.DataFrame({"vqa": [0.9, 0.7], "ocr": [0.5, 0.4]}, index=[42, 43])
    b = pd.DataFrame({"ocr": [0.0, 0.4, 0.5], "vqa": [0.0, 0.7, 0.9]}, index=[1, 43, 42])
    interval = paired_difference(a, b)
    assert (interval.mean, interval.sd, interval.n) == pytest.approx((0.0, 0.0, 2))
    with pytest.raises(PeftkitError, match="same tasks"):
        paired_difference(a, b.rename(columns={"vqa": "sqa"}))


def test_p_value_of_a_paired_difference_is_the_paired_t_test():
    a, b = np.random.default_rng(1).normal(size=(2, 6))
    assert p_value(paired_difference(a, b)) == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue)
    assert p_value(mean_interval(a), null=0.3) == pytest.approx(scipy_stats.ttest_1samp(a, 0.3).pvalue)


def test_p_value_without_spread():
    assert p_value(mean_interval([0.5, 0.5]), null=0.5) == 1.0
    assert p_value(mean_interval([0.5, 0.5]), null=0.4) == 0.0
    rounded = [0.1 + 0.2 - 0.3, 0.3 - 0.2 - 0.1, 0.0]  # all zero but for floating point
    assert p_value(mean_interval(rounded)) == 1.0


def test_p_value_is_below_alpha_exactly_when_the_interval_excludes_zero():
    for draw in np.random.default_rng(2).normal(0.5, 0.5, size=(100, 4)):
        interval = mean_interval(draw)
        assert (p_value(interval) < 0.05) == (interval.low > 0 or interval.high < 0)


@pytest.mark.parametrize("function", [mean_interval, iqm])
@pytest.mark.parametrize("scores", [[], [0.5], [[0.5, 0.6, 0.7]], [0.5, np.nan], [0.5, np.inf], 0.5, [[[1]], [[2]]],
                                    ["good", "bad"], [[0.1, 0.2], [0.3]]])
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


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_outside_0_and_1_is_refused(confidence):
    with pytest.raises(PeftkitError, match="confidence"):
        mean_interval([0.1, 0.2], confidence)
