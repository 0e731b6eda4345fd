"""Seconds a step of a method, and their ratio to another's in alternated pairs."""
import copy
from collections.abc import Callable

import pandas as pd

from ..data import Encoded, encode, task
from ..methods import inject
from ..models import Base
from ..training import TrainConfig, train
from ..training.features import cache_features

STEPS = 20
RATE = 1e-4  # small: no method diverges, and the work of a step does not depend on it


def rows_of(base: Base, batch: int) -> Encoded:
    """Examples for STEPS batches, with the features of the base's frozen tower."""
    base.model.requires_grad_(False)
    drawn = task("vqav2", train_size=batch * STEPS, test_size=1)
    return cache_features(base.model, encode(base.processor, drawn.train, drawn.prompt))


def seconds_a_step(base: Base, rows: Encoded, batch: int, method: str, **options) -> float:
    """Of a copy of the base with the method, one epoch."""
    model = inject(copy.deepcopy(base.model), method, **options)
    config = TrainConfig(epochs=1, batch_size=batch, learning_rate=RATE, progress=False)
    return (result := train(model, base.processor, rows, config)).seconds / result.steps


def ratios(first: Callable[[], float], second: Callable[[], float], repeats: int) -> dict[str, float]:
    """step: first over second, median over `repeats` alternated pairs after one that warms up; fastest and slowest."""
    pairs = [(first(), second()) for _ in range(repeats + 1)][1:]
    found = pd.Series([one / other for one, other in pairs])
    return {"step": found.median(), "fastest": found.min(), "slowest": found.max()}
