import numpy as np
import pandas as pd
import pytest

from peftkit.errors import PeftkitError
from peftkit.stats import compare, holm, p_value, paired_difference, probability_of_improvement

from .coverage import null_p_values


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == pytest.approx([0.02])


def test_declared_tests_without_a_p_value_count_as_if_they_had_found_nothing():
    assert holm([0.01, 0.004], declared=4) == pytest.approx([0.03, 0.016])
    assert holm([0.01, 0.004], declared=4) == pytest.approx(holm([0.01, 0.004, 1.0, 1.0])[:2])


@pytest.mark.parametrize("p_values, declared", [([], None), ([0.5, 1.2], None), ([0.1, np.nan], None), ([[0.1]], None),
                                                (0.1, None), ([0.1, 0.2, 0.3], 2)])
def test_bad_p_values_are_refused(p_values, declared):
    with pytest.raises(PeftkitError):
        holm(p_values, declared)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_holm_keeps_the_error_of_the_whole_family(seeds):
    """Three equal methods against a fourth: some false positive in at most 5 % of families (simulation sd 0.5 %)."""
    p_values = null_p_values(seeds, methods=4)
    assert np.mean([holm(family).min() < 0.05 for family in p_values]) < 0.065
    assert np.mean(p_values.min(axis=1) < 0.05) > 0.08  # without the correction


def test_holm_finds_a_real_effect_more_often_than_bonferroni():
    p_values = null_p_values(5, methods=4)
    p_values[:, 0] *= 0.001  # as if the first test had a large effect
    adjusted = np.array([holm(family) for family in p_values])
    bonferroni = np.minimum(3 * p_values, 1.0)
    assert np.all(adjusted <= bonferroni + 1e-12)
    assert (adjusted < 0.05).sum() > (bonferroni < 0.05).sum()


def drawn(first_seed):
    scores = np.random.default_rng(first_seed).normal(0.1 * first_seed, 0.1, size=(5, 3))
    return pd.DataFrame(scores, index=range(first_seed, first_seed + 5))


SCORES = {"ia3": drawn(0), "lora": drawn(1), "adapter": drawn(2)}


def test_a_family_is_compared_on_shared_seeds_and_corrected_as_a_whole():
    family = [("adapter", "ia3"), ("lora", "ia3")]
    found = compare(SCORES, family, confidence=0.9)
    assert [(row.a, row.b) for row in found] == family
    for row in found:
        assert row.difference == paired_difference(SCORES[row.a], SCORES[row.b], 0.9)
        assert row.p == p_value(row.difference)
        shared = SCORES[row.a].index.intersection(SCORES[row.b].index)
        assert row.improvement == probability_of_improvement(SCORES[row.a].loc[shared], SCORES[row.b].loc[shared])
    assert [row.difference.n for row in found] == [3, 4]
    assert [row.p_holm for row in found] == pytest.approx(holm([row.p for row in found]))


def test_scores_named_by_seed_can_be_compared():
    [row] = compare({"lora": {1: 0.5, 2: 0.7, 3: 0.9}, "ia3": {3: 0.6, 2: 0.6, 4: 0.9}}, [("lora", "ia3")])
    assert (row.difference.mean, row.difference.n, row.improvement.probability) == pytest.approx((0.2, 2, 1.0))


@pytest.mark.parametrize("family", [[], [("lora", "lora")], [("lora", "ia3"), ("ia3", "lora")], [("lora", "vera")]])
def test_a_family_without_pairs_or_with_a_pair_twice_or_an_unknown_method_is_refused(family):
    with pytest.raises(PeftkitError, match="family|unknown method 'vera'"):
        compare(SCORES, family)
