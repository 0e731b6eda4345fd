"""Splits that the runs of a process share: drawn, encoded and with the frozen tower's features once."""
from functools import lru_cache

from ..data import Encoded, Task, encode, task
from ..models import Base, load
from ..training.features import cache_features


@lru_cache(maxsize=2)
def frozen_base(name: str) -> Base:
    """A base, loaded once, of which nothing is trainable: runs train copies of it."""
    base = load(name)
    base.model.requires_grad_(False)
    return base


@lru_cache(maxsize=32)
def split(base: str, name: str, part: str, examples: int) -> tuple[Task, Encoded]:
    """A task and one of its splits ("train", "validation" or "test"), encoded for a base and with its features.

    They are those of an untouched tower: not for models that train theirs.
    """
    drawn = task(name, **dict.fromkeys(("train_size", "validation_size", "test_size"), 1) | {f"{part}_size": examples})
    rows = encode(frozen_base(base).processor, getattr(drawn, part), drawn.prompt, split=part)
    return drawn, cache_features(frozen_base(base).model, rows)
