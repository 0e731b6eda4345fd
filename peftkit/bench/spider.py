"""SPIDER against full tuning of the same part: seconds a step."""
import pandas as pd

from ..models import load
from .steps import ratios, rows_of, seconds_a_step

PART = {"connector": "tuned", "layers": 2}  # as in Huang 2024: the connector and the last two blocks
BATCH = 16


def bench_spider(base: str = "tiny-llava-s", repeats: int = 5) -> pd.DataFrame:
    """One row: base; step, SPIDER's seconds a step over full tuning's (median over `repeats` alternated pairs); fastest
    and slowest, of a pair. Batches of 16 pictures, as in the study.
    """
    loaded = load(base)
    rows = rows_of(loaded, BATCH)
    found = ratios(lambda: seconds_a_step(loaded, rows, BATCH, "spider", **PART),
                   lambda: seconds_a_step(loaded, rows, BATCH, "language", **PART), repeats)
    return pd.DataFrame([{"base": base, **found}]).set_index("base").round(2)
