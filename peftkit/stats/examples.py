"""Uncertainty from the draw of test examples, kept apart from that of seeds."""
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from ..errors import PeftkitError, require_count
from .interval import require_between
from .scores import numbers

FEWEST = 20  # examples of a task; below, a bootstrap of them promises more than it covers


@dataclass(frozen=True)
class ExampleInterval:
    """A mean of task means with its bootstrap interval over test examples; `examples` counts those of all tasks."""

    mean: float
    low: float
    high: float
    tasks: int
    examples: int


def example_interval(scores: Mapping[str, ArrayLike], rng: np.random.Generator, confidence: float = 0.95,
                     resamples: int = 2000) -> ExampleInterval:
    """Mean of task means and its stratified percentile bootstrap interval: examples are redrawn inside each task.

    scores: task → array of shape (examples,), or (seeds, examples) whose seeds are averaged; a task is a stratum. For
    two methods give the differences example by example, which pairs them.

    The question it answers: how would these trained models score on another draw of questions? Whether training again
    would give the same is what seeds answer (`mean_interval`); neither interval contains the other's uncertainty. Each
    example is taken as an own draw: where several questions share a picture, give one mean score a picture.
    Raises `PeftkitError` for fewer than 20 examples of a task (so that seeds are not passed as examples), missing
    scores, or a confidence outside (0, 1).
    """
    require_between(confidence=confidence)
    require_count(resamples=resamples)
    if not scores:
        raise PeftkitError("no tasks; accepted: a mapping of at least one task to its scores")
    tasks = [_per_example(task, task_scores) for task, task_scores in scores.items()]
    found = stats.bootstrap(tasks, _mean_of_tasks, n_resamples=resamples, confidence_level=confidence, batch=100,
                            method="percentile", vectorized=True, rng=rng).confidence_interval
    return ExampleInterval(mean=float(_mean_of_tasks(*tasks)), low=float(found.low), high=float(found.high),
                           tasks=len(tasks), examples=sum(map(len, tasks)))


def _mean_of_tasks(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean([task.mean(axis=axis) for task in tasks], axis=0)


def _per_example(task: str, scores: ArrayLike) -> np.ndarray:
    """One task's scores, shape (examples,), averaged over seeds."""
    array = numbers(scores)
    if array.ndim not in (1, 2) or array.shape[-1] < FEWEST or array.size == 0:
        raise PeftkitError(f"scores of task {task!r} have shape {array.shape}; accepted: (examples,) or "
                           f"(seeds, examples) with at least {FEWEST} examples")
    return array if array.ndim == 1 else array.mean(axis=0)
