"""Probes of hallucination: is there a red star ? (POPE, Li et al. 2023, arXiv 2305.10355).

Half of the answers are yes. An object is a shape with its color; the three probes differ in the pairs that a no may
name, easy ones first. They are only tested on.
"""
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np

from .questions import Question, pick
from .scenes import Thing, sample_scenes
from .vocabulary import COLORS, SHAPES

Pair = tuple[str, str]  # color, shape
PAIRS: tuple[Pair, ...] = tuple(product(COLORS, SHAPES))
POPULAR = 6  # one more than a mixed scene has things: at least one of them is absent
POPULAR_SCENES = 10_000


def _pairs(things: list[Thing]) -> set[Pair]:
    return {(t.color, t.name) for t in things if t.kind == "shape"}


def _probe(things: list[Thing], lures: Sequence[Pair], rng: np.random.Generator) -> Question | None:
    """yes for a pair that is there, no for one of the `lures` that is not."""
    present = _pairs(things)
    if not present:
        return None
    answer = "yes" if rng.random() < 0.5 else "no"
    options = PAIRS if answer == "yes" else lures
    pair = pick([pair for pair in options if (pair in present) == (answer == "yes")], rng)
    return pair and Question(f"is there a {' '.join(pair)} ?", answer)


def pope_random(things, rng) -> Question | None:
    """is there a red star ? A no names any pair that is not there, all equally likely."""
    return _probe(things, PAIRS, rng)


def pope_popular(things, rng) -> Question | None:
    """is there a red star ? A no names one of the `popular_pairs` that is not there.

    The drawn world has no popular things: pairs are drawn uniformly, so the most frequent ones are so by chance and
    this probe is no harder than `pope_random`. It stands here because POPE has three and reports them apart.
    """
    return _probe(things, popular_pairs(), rng)


@lru_cache(maxsize=1)
def popular_pairs() -> tuple[Pair, ...]:
    """The POPULAR pairs that most often occur in a fixed sample of training scenes, most frequent first."""
    scenes = sample_scenes(np.random.default_rng(0), POPULAR_SCENES, "train")
    counts = Counter(pair for i in range(len(scenes)) for pair in _pairs(scenes.things(i)))
    return tuple(sorted(PAIRS, key=lambda pair: -counts[pair])[:POPULAR])


def pope_adversarial(things, rng) -> Question | None:
    """is there a red star ? A no names a color and a shape that are both there, but on different things.

    POPE takes what most often goes with an object of the picture; here that is what is in the picture already, so a
    yes is an error of binding. A picture without such a pair gets one that shares its color or its shape with it.
    """
    colors, shapes = {t.color for t in things}, {t.name for t in things}
    near = [(color, shape) for color, shape in PAIRS if color in colors or shape in shapes]
    bound = [(color, shape) for color, shape in near if color in colors and shape in shapes]
    return _probe(things, bound if set(bound) - _pairs(things) else near, rng)
