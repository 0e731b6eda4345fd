import pytest

from peftkit.errors import PeftkitError
from peftkit.evaluation.metrics import METRICS, exact_match, normalize_evalai, normalize_vqa, score, vqa_accuracy


@pytest.mark.parametrize("text, expected", [
    ("The 1,000 dogs!", "1000 dogs"),
    ("3.5", "3.5"),
    ("3. 5", "3 5"),
    ("t-shirt", "t shirt"),
    ("red/white", "red white"),
    ("one-way", "1 way"),
    ("A.M.", "am"),
    ("None", "0"),
    ("a", ""),
    ("dont", "don't"),
    ("10:30", "10:30"),
    ("$5", "$5"),
    ("50%", "50%"),
    ("\tred\nand blue ", "red and blue"),
    ("ten (10) - maybe", "10 10 maybe"),
    ("couldnt've", "couldn't've"),
    ("couldn'tve", "couldn't've"),
    ("oclock", "o'clock"),
    ("lets", "lets"),
    ("", ""),
])
def test_both_processings_agree_on_the_golden_values(text, expected):
    assert normalize_vqa(text) == expected
    assert normalize_evalai(text) == expected


@pytest.mark.parametrize("text, evalai, vqa", [
    ("john's dog", "john 's dog", "john's dog"),
    ("it's", "it 's", "it's"),
    ("1,000-2", "1000 2", "10002"),
])
def test_the_word_step_is_the_difference_between_the_processings(text, evalai, vqa):
    assert normalize_evalai(text) == evalai
    assert normalize_vqa(text) == vqa


def test_a_mark_next_to_a_space_anywhere_is_deleted_everywhere():
    assert normalize_vqa("t-shirt") == "t shirt"
    assert normalize_vqa("t-shirt - red") == "tshirt red"


@pytest.mark.parametrize("equal, expected", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_with_ten_answers(equal, expected):
    answers = ["red"] * equal + [f"other {letter}" for letter in "bcdefghijk"[equal:]]
    assert vqa_accuracy("Red.", answers) == pytest.approx(expected)


def test_vqa_accuracy_leaves_out_by_place_and_not_by_value():
    assert vqa_accuracy("yes", ["yes"] * 3 + ["no"] * 7) == pytest.approx(0.9)  # by value it would be 0.7


@pytest.mark.parametrize("answers, expected", [
    (["two"], 1.0),
    (["three"], 0.0),
    (["two", "2"], 1.0),
    (["two", "three"], 0.5),
    (["two", "2", "three"], (0.5 + 0.5 + 1.0) / 3),
    (["two", "three", "three", "three"], (0 + 3 * 1 / 3) / 4),
])
def test_vqa_accuracy_with_few_answers(answers, expected):
    assert vqa_accuracy("2", answers) == pytest.approx(expected)


@pytest.mark.parametrize("prediction, answers, expected", [
    (" A  Red\nball ", ["a red ball"], 1.0),
    ("a red ball", ["A red  ball", "ball"], 1.0),
    ("red ball", ["a red ball"], 0.0),
    ("t-shirt", ["tshirt"], 0.0),
    ("B.", ["B"], 0.0),
    ("", [""], 1.0),
])
def test_exact_match(prediction, answers, expected):
    assert exact_match(prediction, answers) == expected


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_score_gives_one_number_from_0_to_1_for_each_example(metric):
    predictions = ["a red ball", "two blue cubes", "no"]
    references = [["a red ball"], ["two blue cubes", "blue cubes"], ["a green cone on the floor"]]
    scores = score(metric, predictions, references)
    assert scores.shape == (3,)
    assert scores.min() >= 0.0 and scores.max() <= 1.0
    assert scores[0] > scores[2]


def test_score_is_the_metric_of_each_example():
    predictions, references = ["yes", "2"], [["yes", "no"], ["two", "2"]]
    assert score("vqa_accuracy", predictions, references).tolist() == [0.5, 1.0]
    assert score("exact_match", predictions, references).tolist() == [1.0, 1.0]


def test_an_unknown_metric_is_refused_with_a_suggestion():
    with pytest.raises(PeftkitError, match="did you mean 'vqa_accuracy'"):
        score("vqa_acuracy", ["yes"], [["yes"]])


@pytest.mark.parametrize("metric", sorted(METRICS))
@pytest.mark.parametrize("predictions, references", [
    ([], []),
    (["yes"], [["yes"], ["no"]]),
    (["yes"], ["yes"]),
    (["yes"], [[]]),
    ([3], [["3"]]),
    (["3"], [[3]]),
])
def test_inputs_that_do_not_fit_together_are_refused(metric, predictions, references):
    with pytest.raises(PeftkitError):
        score(metric, predictions, references)


@pytest.mark.parametrize("metric", [vqa_accuracy, exact_match])
@pytest.mark.parametrize("answers", ["yes", [], [None]])
def test_single_example_metrics_refuse_bad_answers(metric, answers):
    with pytest.raises(PeftkitError):
        metric("yes", answers)
