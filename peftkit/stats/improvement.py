"""Probability of improvement, with the smallest step that it can take."""
from dataclasses import dataclass

import numpy as np

from .scores import same_tasks


@dataclass(frozen=True)
class Improvement:
    """A share of pairs of runs, and its resolution: it is a whole multiple of this and cannot fall between."""

    probability: float
    resolution: float


def probability_of_improvement(scores_a, scores_b) -> Improvement:
    """How likely a run of a beats a run of b: the share of all pairs of seeds with a > b, ties counted half.

    Shapes (seeds of a,) and (seeds of b,), or with a second axis of the same tasks, over which the mean is taken
    (Agarwal et al. 2021, arXiv 2108.13264). The resolution is 1 / (seeds of a × seeds of b × tasks), so ninths at three
    seeds and one task, and half of that if scores tie. More tasks make finer steps, not more seeds.
    Raises `PeftkitError` for fewer than two seeds on a side, missing scores or different tasks.
    """
    a, b = same_tasks(scores_a, scores_b)
    difference = a[:, None, :] - b[None, :, :]  # seeds of a, seeds of b, tasks
    tied = difference == 0
    return Improvement(probability=float(np.mean((difference > 0) + 0.5 * tied)),
                       resolution=(0.5 if tied.any() else 1.0) / difference.size)
