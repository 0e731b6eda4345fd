import numpy as np
import pytest

from peftkit.errors import PeftkitError
from peftkit.stats import equivalence, mean_interval, seeds_to_resolve


@pytest.mark.parametrize("effect, power, seeds", [(0.5, 0.8, 34), (0.5, 0.9, 44), (1.0, 0.8, 10), (0.2, 0.8, 199)])
def test_seeds_of_a_paired_t_test_as_in_power_tables(effect, power, seeds):
    """Two-sided, alpha 0.05 (G*Power, "difference between two dependent means")."""
    assert seeds_to_resolve(effect, sd=1.0, power=power) == seeds
    assert seeds_to_resolve(-3 * effect, sd=3.0, power=power) == seeds


def resolved(effect, sd, margin, seeds, draws=1500):
    """How often `seeds` seeds put their interval beyond the margin, or find equivalence where the effect is within."""
    intervals = [mean_interval(draw) for draw in np.random.default_rng(0).normal(effect, sd, size=(draws, seeds))]
    if abs(effect) < margin:
        return np.mean([equivalence(interval, margin).equivalent for interval in intervals])
    return np.mean([interval.low > margin for interval in intervals])


@pytest.mark.parametrize("effect, sd, margin", [(0.02, 0.015, 0.0), (0.03, 0.02, 0.01), (0.0, 0.02, 0.02),
                                                (0.01, 0.02, 0.02), (0.0, 0.005, 0.02)])
def test_the_promised_power_is_reached_with_that_many_seeds_and_not_with_fewer(effect, sd, margin):
    """Simulation sd 1 %."""
    seeds = seeds_to_resolve(effect, sd, margin)
    assert resolved(effect, sd, margin, seeds) > 0.77
    assert resolved(effect, sd, margin, seeds - 1) < 0.82


def test_nothing_resolves_an_effect_on_the_margin_and_little_a_tiny_one():
    assert seeds_to_resolve(0.5, sd=1.0, margin=0.5) is None
    assert seeds_to_resolve(0.0, sd=1.0) is None
    assert seeds_to_resolve(0.0001, sd=1.0) is None
    assert seeds_to_resolve(100.0, sd=1.0) == 2


def test_more_noise_more_power_or_a_stricter_alpha_cost_seeds():
    usual = seeds_to_resolve(0.02, sd=0.02)
    assert seeds_to_resolve(0.02, sd=0.04) > usual
    assert seeds_to_resolve(0.02, sd=0.02, power=0.95) > usual
    assert seeds_to_resolve(0.02, sd=0.02, alpha=0.01) > usual
    assert seeds_to_resolve(0.02, sd=0.02, margin=0.01) > usual


@pytest.mark.parametrize("arguments", [{"sd": 0.0}, {"sd": -1.0}, {"margin": -0.1}, {"margin": np.nan}, {"alpha": 0.0},
                                       {"power": 1.0}, {"power": 80}, {"effect": np.nan}])
def test_impossible_plans_are_refused(arguments):
    with pytest.raises(PeftkitError, match=next(iter(arguments))):
        seeds_to_resolve(**{"effect": 0.1, "sd": 0.1, **arguments})
