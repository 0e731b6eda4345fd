"""Equivalence: evidence that a difference is small, which a large p-value is not."""
from dataclasses import dataclass
from math import sqrt

from scipy.special import stdtr, stdtrit  # Student's t: distribution function and quantile

from ..errors import require_positive
from .interval import Interval, require_between, t_value


@dataclass(frozen=True)
class Equivalence:
    """The verdict of two one-sided tests: `equivalent` says that the mean lies within ± margin, at error rate alpha.

    low, high: the 1 − 2·alpha interval of the mean, which lies within the margin exactly if `equivalent`.
    """

    equivalent: bool
    p: float
    low: float
    high: float
    margin: float


def equivalence(interval: Interval, margin: float, alpha: float = 0.05) -> Equivalence:
    """Two one-sided t tests (TOST; Schuirmann 1987) that the mean lies within ± margin, from its mean, sd and n.

    margin: the largest difference that still counts as none, in the unit of the scores; declare it before looking.
    p is the larger of the two one-sided ones. Not equivalent does not mean different: both can be unresolved.
    Raises `PeftkitError` for a margin that is not positive or an alpha outside (0, 1).
    """
    require_positive(margin=margin)
    require_between(alpha=alpha)
    above, below = -t_value(interval, -margin), t_value(interval, margin)  # each far below zero if the mean is within
    p = float(stdtr(interval.n - 1, max(above, below)))
    half = float(stdtrit(interval.n - 1, 1.0 - alpha)) * interval.sd / sqrt(interval.n)
    return Equivalence(p < alpha, p, interval.mean - half, interval.mean + half, float(margin))
