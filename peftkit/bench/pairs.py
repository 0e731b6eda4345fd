"""Two ways of doing the same work, measured in turn, so that a machine's mood hits both."""
import statistics
import time
from collections.abc import Callable

from tqdm import tqdm


def alternate(ours: Callable[[], object], theirs: Callable[[], object], repeats: int, what: str = "pairs") -> dict:
    """Seconds of both (medians over `repeats` pairs, after one that warms up), and how many times faster ours is: the
    median, lowest and highest ratio of a pair."""
    pairs = [(_seconds(ours), _seconds(theirs)) for _ in tqdm(range(repeats + 1), desc=what, unit="pair")][1:]
    ratios = [second / first for first, second in pairs]
    return {"ours": statistics.median(first for first, _ in pairs), "theirs": statistics.median(t for _, t in pairs),
            "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
