"""Several methods compared over seeds and tasks, as one declared family."""
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import PeftkitError, choose
from .holm import holm
from .improvement import Improvement, probability_of_improvement
from .interval import Interval, p_value, paired_difference
from .scores import same_seeds


@dataclass(frozen=True)
class Comparison:
    """Method a against method b: a − b by shared seed, the paired t test's p, and the same adjusted for the family."""

    a: str
    b: str
    difference: Interval
    improvement: Improvement
    p: float
    p_holm: float


def compare(scores: Mapping[str, object], family: Iterable[tuple[str, str]],
            confidence: float = 0.95) -> list[Comparison]:
    """The comparisons of a family, each a pair (a, b) of methods, in the order given.

    scores: method → its scores, of any kind that `paired_difference` takes: arrays of shape (seeds, tasks), or frames
    or Series with index seed, of which the shared seeds are compared.
    family: all comparisons that are looked at, declared before looking, because Holm's correction counts them.
    Raises `PeftkitError` as `paired_difference` does, for an unknown method, and for a pair that is declared twice.
    """
    pairs = [(choose("method", a, scores), choose("method", b, scores)) for a, b in family]
    if not pairs or len({frozenset(pair) for pair in pairs}) < len(pairs) or any(a == b for a, b in pairs):
        raise PeftkitError(f"family is {pairs}; accepted: at least one pair of different methods, each pair once")
    matched = [same_seeds(scores[a], scores[b]) for a, b in pairs]
    differences = [paired_difference(a, b, confidence) for a, b in matched]
    p_values = [p_value(difference) for difference in differences]
    improvements = [probability_of_improvement(a, b) for a, b in matched]
    adjusted = holm(p_values).tolist()
    return [Comparison(*pair, *rest) for pair, *rest in zip(pairs, differences, improvements, p_values, adjusted)]
