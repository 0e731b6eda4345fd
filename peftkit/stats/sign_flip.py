"""The exact sign-flip test: no assumption but that, without an effect, each difference could have either sign."""
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import PeftkitError
from .interval import require_between
from .scores import ROUNDING, seed_rows

MOST_SEEDS = 16  # 65,536 sign patterns; with more seeds the t test loses nothing


@dataclass(frozen=True)
class SignFlip:
    """Two-sided p over n seeds, or None with the reason; `floor` is the smallest p that these seeds could give."""

    p: float | None
    floor: float
    n: int
    reason: str


def sign_flip(differences: ArrayLike, alpha: float = 0.05) -> SignFlip:
    """Exact two-sided sign-flip test of paired seed differences, shape (seeds,) or (seeds, tasks), against zero.

    p is the share of the 2^n sign patterns whose mean is at least as far from zero as the measured one. The smallest
    possible p is 2 / 2^n (differences of zero do not count). Unless that is below alpha no scores could make the test
    reject, so it gives the reason instead of a p. At alpha 0.05 it starts at six seeds.
    Raises `PeftkitError` for fewer than two or more than 16 seeds, missing scores or an alpha outside (0, 1).
    """
    require_between(alpha=alpha)
    per_seed = seed_rows(differences).mean(axis=1)
    n = len(per_seed)
    if n > MOST_SEEDS:
        raise PeftkitError(f"{n} seeds have too many sign patterns; accepted: up to {MOST_SEEDS}, above use the t test")
    flippable = np.count_nonzero(np.abs(per_seed) > ROUNDING)
    floor = min(1.0, 2.0 / 2**flippable)
    if floor >= alpha:
        return SignFlip(None, floor, n, f"{flippable} differences that are not zero cannot give a p below {floor:g}, "
                                        f"and alpha is {alpha:g}")
    # scipy.stats.permutation_test is exact too, but scores on a grid tie, and near zero it misses ties by rounding
    signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)  # sign patterns, seeds
    as_far = np.abs(signs @ per_seed) >= abs(per_seed.sum()) - n * ROUNDING
    return SignFlip(float(as_far.mean()), floor, n, "")
