"""How many seeds would settle a question."""
from bisect import bisect_left
from math import isfinite, sqrt

from scipy import stats

from ..errors import PeftkitError, require_positive
from .interval import require_between

MOST_SEEDS = 100_000


def seeds_to_resolve(effect: float, sd: float, margin: float = 0.0, alpha: float = 0.05,
                     power: float = 0.8) -> int | None:
    """The fewest seeds that would resolve a difference with probability `power`, were `effect` and `sd` the truth.

    effect, sd: mean and standard deviation of paired seed differences. An effect beyond ± margin is resolved when its
    1 − alpha t interval lies beyond the margin on that side (margin 0: when it excludes zero); one within, when
    `equivalence` at the same margin and alpha says so. None if over 100,000 seeds would be needed, as for an effect
    that lies on the margin.
    The answer is as rough as the sd that goes in: the true one is 0.6 to 2.9 times that of 5 seeds (95 % interval), and
    seeds grow as its square. Powers are those of the noncentral t; for equivalence they are a lower bound, so close
    that at power 0.8 the seeds are the same.
    Raises `PeftkitError` for an sd that is not positive, a negative margin, an effect or margin that is not finite, or
    an alpha or power outside (0, 1).
    """
    require_positive(sd=sd)
    require_between(alpha=alpha, power=power)
    if not isfinite(effect):
        raise PeftkitError(f"effect is {effect!r}; accepted: a finite number")
    if not (isfinite(margin) and margin >= 0):
        raise PeftkitError(f"margin is {margin!r}; accepted: 0 or a positive number")
    reached = _power_within if abs(effect) < margin else _power_beyond
    seeds = bisect_left(range(MOST_SEEDS + 1), True, lo=2,
                        key=lambda n: bool(reached(n, abs(effect) / sd, margin / sd, alpha) >= power))
    return seeds if seeds <= MOST_SEEDS else None


def _power_beyond(n: int, effect: float, margin: float, alpha: float) -> float:
    """How likely n seeds put the whole interval above the margin; effect and margin in units of the sd."""
    return stats.nct.sf(stats.t.ppf(1.0 - alpha / 2.0, n - 1), n - 1, (effect - margin) * sqrt(n))


def _power_within(n: int, effect: float, margin: float, alpha: float) -> float:
    """How likely at least both one-sided tests reject: 1 − the sum of how often each fails (Bonferroni)."""
    bound = stats.t.ppf(1.0 - alpha, n - 1)
    return sum(stats.nct.sf(bound, n - 1, distance * sqrt(n)) for distance in (margin - effect, margin + effect)) - 1.0
