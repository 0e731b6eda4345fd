"""Scores of seeds and tasks as arrays, checked, and matched between two methods."""
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..errors import PeftkitError

ROUNDING = 1e-12  # scores are shares or points of 100: smaller differences come from floating-point sums


def numbers(scores: ArrayLike) -> np.ndarray:
    """Scores as a float array of any shape, or a refusal of what is missing, infinite or no number."""
    try:
        array = np.asarray(scores, dtype=float)
    except (TypeError, ValueError):
        raise PeftkitError(f"scores are {scores!r}; accepted: numbers, the same count for every seed") from None
    if not np.all(np.isfinite(array)):
        raise PeftkitError("some scores are missing or infinite; give every seed the same tasks")
    return array


def seed_rows(scores: ArrayLike) -> np.ndarray:
    """Scores as an array of shape (seeds, tasks); (seeds,) is taken as one task."""
    rows = numbers(scores)
    if rows.ndim not in (1, 2) or rows.size == 0:
        raise PeftkitError(f"scores have shape {rows.shape}; accepted: (seeds,) or (seeds, tasks)")
    if len(rows) < 2:
        raise PeftkitError("one seed tells nothing about the spread between seeds; at least two are needed")
    return rows.reshape(len(rows), -1)


def same_seeds(scores_a, scores_b) -> tuple[np.ndarray, np.ndarray]:
    """Two methods' scores, both of shape (shared seeds, tasks), with row i the same seed and column j the same task.

    A Series, a frame or a dict of seed → score is matched by name; of plain arrays the order is believed.
    """
    named = [isinstance(scores, (Mapping, pd.Series, pd.DataFrame)) for scores in (scores_a, scores_b)]
    if any(named) and not all(named):
        raise PeftkitError("one method's scores are named by seed and the other's are not; name both or neither")
    if all(named):
        scores_a, scores_b = _shared(_frame(scores_a), _frame(scores_b))
    a, b = same_tasks(scores_a, scores_b)
    if a.shape != b.shape:
        raise PeftkitError(f"paired scores need equal shapes (seeds, tasks); got {a.shape} and {b.shape}")
    return a, b


def same_tasks(scores_a, scores_b) -> tuple[np.ndarray, np.ndarray]:
    """Two methods' scores of shapes (seeds of a, tasks) and (seeds of b, tasks); named columns are matched."""
    if isinstance(scores_a, pd.DataFrame) and isinstance(scores_b, pd.DataFrame):
        if sorted(map(str, scores_a)) != sorted(map(str, scores_b)):
            raise PeftkitError(f"both methods need the same tasks; got {list(scores_a)} and {list(scores_b)}")
        scores_b = scores_b[list(scores_a)]
    a, b = seed_rows(scores_a), seed_rows(scores_b)
    if a.shape[1] != b.shape[1]:
        raise PeftkitError(f"both methods need the same tasks; got {a.shape[1]} and {b.shape[1]} of them")
    return a, b


def _frame(scores) -> pd.DataFrame:
    """Scores named by seed as a frame: index seed, a column a task."""
    frame = scores if isinstance(scores, pd.DataFrame) else pd.Series(scores).to_frame("score")
    if not frame.index.is_unique:
        raise PeftkitError("a seed occurs twice in one method's scores; average its tasks first")
    return frame


def _shared(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the seeds that both have, in the same order."""
    shared = a.index.intersection(b.index)
    if len(shared) < 2:
        raise PeftkitError(f"the methods share {len(shared)} seed(s), two are needed: {list(a.index)}, {list(b.index)}")
    return a.loc[shared], b.loc[shared]
