"""The interquartile mean."""
from numpy.typing import ArrayLike
from scipy import stats

from .scores import seed_rows


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean of all runs, shape (seeds,) or (seeds, tasks): the lowest and highest quarter left out.

    ⌊runs / 4⌋ runs are cut at each end, so with three runs or fewer it is the mean.
    Raises `PeftkitError` for fewer than two seeds or missing scores.
    """
    return float(stats.trim_mean(seed_rows(scores), 0.25, axis=None))
