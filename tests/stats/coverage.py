"""How often intervals cover and tests err, by simulation; `python -m tests.stats.coverage` prints the tables."""
import numpy as np

from peftkit.stats import example_interval, mean_interval, p_value

SEEDS = (3, 5, 10)


def normal(rng, shape):
    """Runs that scatter evenly."""
    return rng.normal(0.7, 0.05, shape), 0.7


def mild_skew(rng, shape):
    """Accuracies about 95 % with a spread of 1.5 points."""
    return rng.beta(190, 10, shape), 0.95


def strong_skew(rng, shape):
    """Accuracies pressed against 100 %: mean 95, spread 5 points."""
    return rng.beta(19, 1, shape), 0.95


def eight_tasks(rng, shape):
    """As `strong_skew`, the mean over 8 independent tasks."""
    return rng.beta(19, 1, (*shape, 8)).mean(axis=-1), 0.95


def skewed_difference(rng, shape):
    """As `strong_skew`, minus a second method of mean 90 % that shares the spread of its seeds by half."""
    shared = rng.normal(0.0, 0.03, shape)
    return (rng.beta(19, 1, shape) + shared) - (rng.beta(9, 1, shape) + shared), 0.05


def grid(rng, shape):
    """Differences of two accuracies on 100 questions, so multiples of 0.01 that tie now and then."""
    return (rng.binomial(100, 0.9, shape) - rng.binomial(100, 0.9, shape)) / 100, 0.0


def collapse(rng, shape):
    """One run in ten loses 30 points."""
    return rng.normal(0.7, 0.02, shape) - 0.3 * (rng.random(shape) < 0.1), 0.67


KINDS = (normal, mild_skew, strong_skew, eight_tasks, skewed_difference, grid, collapse)


def seed_coverage(kind, seeds: int, draws: int = 4000) -> float:
    """How often the nominal 95 % t interval of `kind` scores holds their true mean."""
    scores, truth = kind(np.random.default_rng([seeds, KINDS.index(kind)]), (draws, seeds))
    intervals = [mean_interval(row) for row in scores]
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


def null_p_values(seeds: int, methods: int, tasks: int = 4, draws: int = 2000) -> np.ndarray:
    """Paired t tests of equal methods that share their seeds' noise (correlation 0.5): shape (draws, methods − 1).

    Each method is compared with the first, so the tests of a family depend on each other.
    """
    rng = np.random.default_rng([seeds, methods])
    scores = rng.normal(size=(draws, methods, seeds, tasks)) + rng.normal(size=(draws, 1, seeds, tasks))
    return np.array([[p_value(mean_interval(other - family[0])) for other in family[1:]] for family in scores])


def example_coverage(accuracy: float, examples: int, draws: int = 200, resamples: int = 500) -> float:
    """How often the nominal 95 % interval over examples of two tasks, one of twice the size, holds the true mean."""
    rng = np.random.default_rng([examples, round(1000 * accuracy)])
    held = []
    for _ in range(draws):
        scores = {"short": rng.random(examples) < accuracy, "long": rng.random(2 * examples) < accuracy - 0.1}
        interval = example_interval(scores, rng, resamples=resamples)
        held.append(interval.low <= accuracy - 0.05 <= interval.high)
    return float(np.mean(held))


if __name__ == "__main__":
    print("coverage of nominal 95 % t intervals, seeds", *SEEDS)
    for kind in KINDS:
        print(f"  {kind.__name__:18}", *(f"{seed_coverage(kind, seeds, 10_000):.3f}" for seeds in SEEDS))
    print("false positives of the paired t test at 5 %, seeds", *SEEDS)
    print(f"  {'':18}", *(f"{(null_p_values(seeds, 2, draws=10_000) < 0.05).mean():.3f}" for seeds in SEEDS))
    print("coverage of nominal 95 % bootstrap intervals over test examples, examples 30 100 300")
    for accuracy in (0.6, 0.95):
        print(f"  accuracy {accuracy:<9}", *(f"{example_coverage(accuracy, n, 600):.3f}" for n in (30, 100, 300)))
