import numpy as np
import pytest

from peftkit.errors import PeftkitError
from peftkit.stats import equivalence, example_interval, mean_interval, p_value

from .coverage import example_coverage


def rng():
    return np.random.default_rng(0)


def test_the_interval_is_that_of_the_mean_of_task_means():
    """Against the normal approximation: 400 and 100 examples, bounds to 5 % of the width."""
    scores = {"vqa": rng().random(400) < 0.7, "ocr": rng().normal(0.4, 0.2, 100)}
    found = example_interval(scores, rng(), resamples=4000)
    mean = np.mean([np.mean(task) for task in scores.values()])
    half = 1.96 * np.sqrt(sum(np.var(task) / len(task) for task in scores.values())) / 2
    assert (found.mean, found.tasks, found.examples) == (pytest.approx(mean), 2, 500)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


def test_strata_keep_the_difference_between_tasks_out():
    """Every example of a task scores the same: another draw of questions inside each task changes nothing."""
    found = example_interval({"easy": np.ones(50), "hard": np.zeros(50)}, rng())
    assert (found.low, found.mean, found.high) == (0.5, 0.5, 0.5)


def test_seeds_are_averaged_example_by_example_and_add_no_examples():
    runs = rng().random((3, 60))
    assert example_interval({"vqa": runs}, rng()) == example_interval({"vqa": runs.mean(axis=0)}, rng())


def test_the_spread_of_seeds_is_not_in_it():
    """Three runs that differ by 0.2 on every question: their seeds disagree, the questions do not."""
    runs = 0.5 + np.array([[-0.2], [0.0], [0.2]]) + np.zeros((3, 60))
    found, seeds = example_interval({"vqa": runs}, rng()), mean_interval(runs)
    assert found.high - found.low == pytest.approx(0.0, abs=1e-9)
    assert seeds.high - seeds.low > 0.5


def test_tests_between_seeds_cannot_be_run_on_it():
    found = example_interval({"vqa": rng().random(60)}, rng())
    for test in (p_value, lambda interval: equivalence(interval, 0.1)):
        with pytest.raises(AttributeError):
            test(found)


def test_the_same_generator_gives_the_same_interval_and_a_higher_confidence_a_wider_one():
    scores = {"vqa": rng().random(60)}
    assert example_interval(scores, rng()) == example_interval(scores, rng())
    assert example_interval(scores, rng(), 0.99).high > example_interval(scores, rng(), 0.8).high


@pytest.mark.parametrize("accuracy", [0.6, 0.95])
@pytest.mark.parametrize("examples", [30, 100])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(examples, accuracy):
    """200 draws: simulation sd 1.5 %; few examples near the ceiling cover a little less than 95 %."""
    assert 0.89 < example_coverage(accuracy, examples) < 0.99


@pytest.mark.parametrize("scores", [{}, {"vqa": [0.1, 0.2, 0.3]}, {"vqa": np.ones((30, 5))}, {"vqa": 0.5},
                                    {"vqa": [0.1] * 30 + [np.nan]}, {"vqa": np.ones((0, 30))}])
def test_seeds_in_the_place_of_examples_and_bad_scores_are_refused(scores):
    with pytest.raises(PeftkitError):
        example_interval(scores, rng())


@pytest.mark.parametrize("arguments", [{"confidence": 95}, {"resamples": 0}])
def test_impossible_settings_are_refused(arguments):
    with pytest.raises(PeftkitError):
        example_interval({"vqa": np.ones(30)}, rng(), **arguments)
