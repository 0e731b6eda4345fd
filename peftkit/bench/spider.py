"""SPIDER against full tuning of the same part: seconds a step."""
import copy

import pandas as pd

from ..data import Encoded, encode, task
from ..methods import inject
from ..models import Base, load
from ..training import TrainConfig, train
from ..training.features import cache_features

PART = {"connector": "tuned", "layers": 2}  # as in Huang 2024: the connector and the last two blocks
BATCH, STEPS = 16, 20
RATE = 1e-4  # small: nothing diverges, and the work of a step does not depend on it


def bench_spider(base: str = "tiny-llava-s", repeats: int = 5) -> pd.DataFrame:
    """One row: base; step, SPIDER's seconds a step over full tuning's (median over `repeats` alternated pairs); fastest
    and slowest, of a pair. Batches of 16 pictures, as in the study.
    """
    loaded = load(base)
    loaded.model.requires_grad_(False)
    drawn = task("vqav2", train_size=BATCH * STEPS, test_size=1)
    rows = cache_features(loaded.model, encode(loaded.processor, drawn.train, drawn.prompt))
    pairs = [(_seconds(loaded, rows, "spider"), _seconds(loaded, rows, "language")) for _ in range(repeats + 1)]
    ratios = pd.Series([spider / full for spider, full in pairs[1:]])  # the first pair warms up
    found = {"base": base, "step": ratios.median(), "fastest": ratios.min(), "slowest": ratios.max()}
    return pd.DataFrame([found]).set_index("base").round(2)


def _seconds(base: Base, rows: Encoded, method: str) -> float:
    model = inject(copy.deepcopy(base.model), method, **PART)
    config = TrainConfig(epochs=1, batch_size=BATCH, learning_rate=RATE, progress=False)
    return (result := train(model, base.processor, rows, config)).seconds / result.steps
