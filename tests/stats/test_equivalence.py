import numpy as np
import pytest
from scipy import stats as scipy_stats

from peftkit.errors import PeftkitError
from peftkit.stats import equivalence, mean_interval


def test_equivalence_is_two_one_sided_t_tests():
    for draw in np.random.default_rng(0).normal(0.2, 1.0, size=(50, 6)):
        above = scipy_stats.ttest_1samp(draw, -1.0, alternative="greater").pvalue
        below = scipy_stats.ttest_1samp(draw, 1.0, alternative="less").pvalue
        found = equivalence(mean_interval(draw), margin=1.0)
        assert found.p == pytest.approx(max(above, below))
        assert found.equivalent == (max(above, below) < 0.05)


def test_equivalent_means_that_the_90_percent_interval_lies_within_the_margin():
    verdicts = set()
    for draw in np.random.default_rng(1).normal(0.0, 1.0, size=(200, 5)):
        interval = mean_interval(draw, confidence=0.9)
        found = equivalence(interval, margin=1.0)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
        assert found.equivalent == (-1.0 < interval.low and interval.high < 1.0)
        verdicts.add(found.equivalent)
    assert verdicts == {True, False}


@pytest.mark.parametrize("truth", [-0.5, 0.5])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_a_difference_of_the_whole_margin_is_called_none_in_at_most_5_percent(seeds, truth):
    """Simulation sd 0.5 %; the spread is small against the margin, so that the error rate is reached, not only kept."""
    draws = np.random.default_rng(seeds).normal(truth, 0.1, size=(2000, seeds))
    wrong = np.mean([equivalence(mean_interval(draw), 0.5).equivalent for draw in draws])
    assert wrong == pytest.approx(0.05, abs=0.018)


def test_a_large_p_of_no_difference_is_no_equivalence():
    wide = mean_interval([-3.0, 3.1, 0.2])
    assert not equivalence(wide, margin=0.5).equivalent
    assert equivalence(mean_interval([-0.1, 0.1, 0.0]), margin=0.5).equivalent


def test_equivalence_without_spread():
    assert equivalence(mean_interval([0.2, 0.2]), margin=0.3).equivalent
    assert not equivalence(mean_interval([0.2, 0.2]), margin=0.1).equivalent
    assert not equivalence(mean_interval([-0.2, -0.2]), margin=0.2).equivalent


@pytest.mark.parametrize("margin, alpha", [(0.0, 0.05), (-1.0, 0.05), (np.nan, 0.05), (0.5, 0.0), (0.5, 5)])
def test_a_margin_or_alpha_that_means_nothing_is_refused(margin, alpha):
    with pytest.raises(PeftkitError, match="margin|alpha"):
        equivalence(mean_interval([0.1, 0.2]), margin, alpha)
