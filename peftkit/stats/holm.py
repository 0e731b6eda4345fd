"""Holm's correction for a family of tests."""
import numpy as np
from numpy.typing import ArrayLike

from ..errors import PeftkitError


def holm(p_values: ArrayLike, declared: int | None = None) -> np.ndarray:
    """Holm-adjusted p-values, shape (m,), in the order given: reject where they are below the error rate.

    The k-th smallest of m is multiplied by m − k + 1; an adjusted value is never below a smaller one's, nor above 1.
    declared: how many tests were announced, if some have no p-value yet. They count as tests that found nothing, so
    that a family does not get easier by leaving runs out.
    Raises `PeftkitError` unless all values lie in [0, 1] and `declared` is at least their number.
    """
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or p.size == 0 or not np.all((p >= 0.0) & (p <= 1.0)):
        raise PeftkitError(f"p-values are {p_values!r}; accepted: a non-empty list of numbers from 0 to 1")
    declared = p.size if declared is None else declared
    if declared < p.size:
        raise PeftkitError(f"declared is {declared!r}, but there are {p.size} p-values; accepted: {p.size} or more")
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * (declared - np.arange(p.size)))
    result = np.empty_like(p)
    result[order] = np.minimum(adjusted, 1.0)
    return result
