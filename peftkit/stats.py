"""Statistics for a few seeds: intervals, paired differences, probability of improvement, IQM, Holm.

The unit of uncertainty is the seed. Scores of several tasks are first averaged inside each seed, then a Student-t
interval is put on these per-seed averages. At 3 to 10 seeds it covers what it promises, which bootstrap intervals do
not (a nominal 95 % one covers about 75 % at three seeds). Scores of test examples are not seeds: average them first.
Every function refuses fewer than two seeds, because one number says nothing about its own spread.
"""
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from peftkit.errors import PeftkitError


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

    Raises `PeftkitError` for fewer than two seeds, missing scores or a confidence outside (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise PeftkitError(f"confidence is {confidence!r}; accepted: a number between 0 and 1, such as 0.95")
    per_seed = _seed_rows(scores).mean(axis=1)
    n, mean, sd = len(per_seed), float(per_seed.mean()), float(per_seed.std(ddof=1))
    half = float(stats.t.ppf((1.0 + confidence) / 2.0, df=n - 1)) * sd / np.sqrt(n)
    return Interval(mean=mean, low=mean - half, high=mean + half, n=n, sd=sd)


def paired_difference(scores_a, scores_b, confidence: float = 0.95) -> Interval:
    """Mean of a − b over the seeds that both methods ran, with its Student-t interval.

    Give both as a pandas Series or a dict of seed → score, which are matched by seed (seeds of one side only are left
    out; `n` tells how many stayed), or both as arrays of shape (seeds,) or (seeds, tasks) with row i the same seed.
    Raises `PeftkitError` as `mean_interval` does, and for shapes that differ or a seed that occurs twice.
    """
    by_seed = [isinstance(scores, (Mapping, pd.Series)) for scores in (scores_a, scores_b)]
    if by_seed == [True, True]:
        scores_a, scores_b = _match_seeds(pd.Series(scores_a), pd.Series(scores_b))
    elif any(by_seed):
        raise PeftkitError("one method's scores are named by seed and the other's are not; name both or neither")
    a, b = _seed_rows(scores_a), _seed_rows(scores_b)
    if a.shape != b.shape:
        raise PeftkitError(f"paired scores need equal shapes (seeds, tasks); got {a.shape} and {b.shape}")
    return mean_interval(a - b, confidence)


def p_value(interval: Interval, null: float = 0.0) -> float:
    """Two-sided p of the t test that the mean is `null`, from an interval's mean, sd and n.

    On a `paired_difference` this is the paired t test. Without any spread it is 1 if the mean is `null`, else 0.
    """
    if interval.sd == 0.0:
        return float(interval.mean == null)
    t = (interval.mean - null) / (interval.sd / np.sqrt(interval.n))
    return float(2.0 * stats.t.sf(abs(t), df=interval.n - 1))


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm-adjusted p-values, shape (m,), in the order given: reject where they are below the error rate.

    The k-th smallest of m is multiplied by m − k + 1; an adjusted value is never below a smaller one's, nor above 1.
    Raises `PeftkitError` unless all values lie in [0, 1].
    """
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or p.size == 0 or not np.all((p >= 0.0) & (p <= 1.0)):
        raise PeftkitError(f"p-values are {p_values!r}; accepted: a non-empty list of numbers from 0 to 1")
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    result = np.empty_like(p)
    result[order] = np.minimum(adjusted, 1.0)
    return result


def probability_of_improvement(scores_a: ArrayLike, scores_b: ArrayLike) -> float:
    """How likely a run of a beats a run of b: the share of all pairs of seeds with a > b, ties counted half.

    Shapes (seeds of a,) and (seeds of b,), or with a second axis of the same tasks, over which the mean is taken
    (Agarwal et al. 2021, arXiv 2108.13264). Without ties, one task gives multiples of 1 / (seeds of a × seeds of b), so
    ninths at three seeds.
    Raises `PeftkitError` for fewer than two seeds on a side, missing scores or different numbers of tasks.
    """
    a, b = _seed_rows(scores_a), _seed_rows(scores_b)
    if a.shape[1] != b.shape[1]:
        raise PeftkitError(f"both methods need the same tasks; got {a.shape[1]} and {b.shape[1]}")
    difference = a[:, None, :] - b[None, :, :]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean of all runs, shape (seeds,) or (seeds, tasks): the lowest and highest quarter left out.

    ⌊runs / 4⌋ runs are cut at each end, so with three runs or fewer it is the mean.
    Raises `PeftkitError` for fewer than two seeds or missing scores.
    """
    return float(stats.trim_mean(_seed_rows(scores), 0.25, axis=None))


def _seed_rows(scores: ArrayLike) -> np.ndarray:
    """Scores as an array of shape (seeds, tasks), or a refusal."""
    rows = np.asarray(scores, dtype=float)
    if rows.ndim not in (1, 2) or rows.size == 0:
        raise PeftkitError(f"scores have shape {rows.shape}; accepted: (seeds,) or (seeds, tasks)")
    if len(rows) < 2:
        raise PeftkitError("one seed tells nothing about the spread between seeds; at least two are needed")
    if not np.all(np.isfinite(rows)):
        raise PeftkitError("some scores are missing or infinite; give every seed the same tasks")
    return rows.reshape(len(rows), -1)


def _match_seeds(a: pd.Series, b: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the seeds that both have, in the same order."""
    for series in (a, b):
        if not series.index.is_unique:
            raise PeftkitError("a seed occurs twice in one method's scores; average its tasks first")
    shared = a.index.intersection(b.index)
    if len(shared) < 2:
        raise PeftkitError(f"the methods share {len(shared)} seed(s), two are needed: {list(a.index)}, {list(b.index)}")
    return a.loc[shared].to_numpy(), b.loc[shared].to_numpy()
