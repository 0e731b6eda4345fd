"""The words that the claims are written in: groups of cells, noise of printed means, and builders of predicates."""
from collections.abc import Callable, Sequence
from math import inf, sqrt

import pandas as pd

from ...cells import Cells, listed
from ...claims import Effect
from ..study import SEEN, SIZES, UNSEEN
from ..tables import MODELS

Predicate = Callable[[Cells], dict[str, Effect]]

METHODS, CONNECTORS, ALL = tuple(SIZES), ("frozen", "tuned"), UNSEEN + SEEN
SMALL, LARGE, SHAREGPT, QWEN = MODELS  # the paper's names; on our side our stand-ins carry them
EVERY, LLAVA = tuple(MODELS), (SMALL, LARGE, SHAREGPT)
LORA, ADAPTER, IA3, PREFIX = ({"method": method} for method in METHODS)
FROZEN, TUNED = ({"connector": connector} for connector in CONNECTORS)

# Standard errors of printed means from the number of test examples, in points (facts 5.1). The training seed comes on
# top, so they are the least. "pairs": mean over the six transfer pairs.
ERRORS = {"Avg": 0.30, "U": 0.28, "S": 0.39, "pairs": 0.27}
CELL = 2.0  # by how much the paper disagrees with itself on one configuration and task (facts 5.1)


def noise(mean: str, models: int = 1) -> float:
    """Margin of a difference of two printed means over so many models: two of its standard errors, in points."""
    return 2 * sqrt(2) * ERRORS[mean] / sqrt(models)


def coin(places: int) -> float:
    """Margin of a share of so many places in percent: two standard errors of a coin's."""
    return 100 / sqrt(places)


def lead(first: dict, second: dict, low: float = 0.0, high: float = inf, name: str = "", **where) -> Predicate:
    """Mean score of `first` minus `second`: both are arguments of `Cells.mean` that differ, `where` what they share.

    Left out, an argument is the main study, every model, all methods, connector tuned, all eight tasks.
    """
    default = {"study": "zhou2024", "model": EVERY, "method": METHODS, "connector": "tuned", "task": ALL}
    shared = " ".join(str(where[key]) for key in ("model", "method", "connector", "task", "setting")
                      if isinstance(where.get(key), str))
    name = name or f"{_words(first)} − {_words(second)}" + (f" ({shared})" if shared else "")

    def predicate(cells: Cells) -> dict[str, Effect]:
        one, two = default | where | first, default | where | second
        if not all({*listed(arm["model"])} & {*cells.models} for arm in (one, two)):
            return {}  # this side has no such model
        return {name: Effect(cells.mean(**one) - cells.mean(**two), low, high)}

    return predicate


def each(*predicates: Predicate) -> Predicate:
    """All effects of several predicates together: every one of them must hold."""
    return lambda cells: {name: effect for predicate in predicates for name, effect in predicate(cells).items()}


def order(*arms: dict, **where) -> Predicate:
    """Every arm ahead of the next one."""
    return each(*(lead(first, second, **where) for first, second in zip(arms, arms[1:])))


def ahead(best: dict, others: Sequence[dict], **where) -> Predicate:
    """One arm ahead of each of the others."""
    return each(*(lead(best, other, **where) for other in others if other != best))


def share(wins: Callable[[Cells], list[pd.Series]], name: str) -> Predicate:
    """The share of places, in percent, at which something is above zero; more than half is what chance gives.

    wins: cells -> one series by seed a place.
    """
    def predicate(cells: Cells) -> dict[str, Effect]:
        places = pd.concat(wins(cells), axis=1, join="inner")
        return {name: Effect(100.0 * (places > 0).mean(axis=1), low=50.0)}

    return predicate


def best_is_one_of(methods: tuple[str, ...], tasks: tuple[str, ...]) -> Predicate:
    """The share of model × connector × task at which the best of the four methods is one of these."""
    def wins(cells: Cells) -> list[pd.Series]:
        places = [(model, connector, task) for model in cells.models for connector in CONNECTORS for task in tasks]
        return [_best(cells, methods, *place) - _best(cells, set(METHODS) - set(methods), *place) for place in places]

    return share(wins, f"{' or '.join(methods)} is best, % of cells")


def _best(cells: Cells, methods, model: str, connector: str, task: str) -> pd.Series:
    return pd.concat([cells.mean("zhou2024", model, method, connector, task) for method in methods], axis=1,
                     join="inner").max(axis=1)


def _words(arm: dict) -> str:
    return " ".join(str(value) for value in arm.values())
