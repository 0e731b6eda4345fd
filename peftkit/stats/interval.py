"""Student-t intervals on seeds, and the t test that belongs to them."""
from dataclasses import dataclass
from math import copysign, inf, sqrt

from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit  # Student's t: distribution function and quantile

from ..errors import PeftkitError
from .scores import ROUNDING, same_seeds, seed_rows


@dataclass(frozen=True)
class Interval:
    """A mean over n seeds with its confidence interval and standard deviation (n − 1), in the unit of the scores."""

    mean: float
    low: float
    high: float
    n: int
    sd: float


def mean_interval(scores: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean and Student-t interval, mean ± t(n − 1) · sd / √n; `scores` has shape (seeds,) or (seeds, tasks).

    Nominal 95 % covers 94 to 96 % where seeds scatter evenly, but about 90 % where one task's scores press against
    their ceiling, and 58 to 77 % where one run in ten collapses, because a few seeds may hold none such: plot every
    seed. Means over tasks and paired differences suffer less (`python -m tests.stats.coverage` measures all this).
    Raises `PeftkitError` for fewer than two seeds, missing scores or a confidence outside (0, 1).
    """
    require_between(confidence=confidence)
    per_seed = seed_rows(scores).mean(axis=1)
    n, mean, sd = len(per_seed), float(per_seed.mean()), float(per_seed.std(ddof=1))
    half = float(stdtrit(n - 1, (1.0 + confidence) / 2.0)) * sd / sqrt(n)
    return Interval(mean=mean, low=mean - half, high=mean + half, n=n, sd=sd)


def paired_difference(scores_a, scores_b, confidence: float = 0.95) -> Interval:
    """Mean of a − b over the seeds that both methods ran, with its Student-t interval.

    Give both as a pandas Series or a dict of seed → score, or as a frame with index seed and a column a task: they are
    matched by name (seeds of one side only are left out; `n` tells how many stayed). Or give both as arrays of shape
    (seeds,) or (seeds, tasks) with row i the same seed.
    Raises `PeftkitError` as `mean_interval` does, and for shapes or tasks that differ or a seed that occurs twice.
    """
    a, b = same_seeds(scores_a, scores_b)
    return mean_interval(a - b, confidence)


def p_value(interval: Interval, null: float = 0.0) -> float:
    """Two-sided p of the t test that the mean is `null`, from an interval's mean, sd and n.

    On a `paired_difference` this is the paired t test. Without any spread it is 1 if the mean is `null`, else 0.
    """
    return float(2.0 * stdtr(interval.n - 1, -abs(t_value(interval, null))))


def t_value(interval: Interval, null: float) -> float:
    """How many standard errors the mean lies above `null`; without any spread 0 or infinitely many."""
    distance = interval.mean - null
    if interval.sd <= ROUNDING:
        return 0.0 if abs(distance) <= ROUNDING else copysign(inf, distance)
    return distance / (interval.sd / sqrt(interval.n))


def require_between(**shares: float) -> None:
    """Raise `PeftkitError` for a confidence, error rate or power that is not a number between 0 and 1."""
    for name, share in shares.items():
        if not isinstance(share, (int, float)) or not 0.0 < share < 1.0:
            raise PeftkitError(f"{name} is {share!r}; accepted: a number between 0 and 1, such as 0.05, 0.8 or 0.95")
