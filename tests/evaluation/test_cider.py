from math import exp, log, sqrt

import numpy as np
import pytest

from peftkit.errors import PeftkitError
from peftkit.evaluation.cider import cider_d, tokenize


def test_tokens_are_lower_case_words_without_punctuation():
    assert tokenize("It's a RED ball, 3-D (big)!") == ["it's", "a", "red", "ball", "3", "d", "big"]


def test_an_example_by_hand():
    """Two images, one reference each. "red" stands in both (weight 0), every other n-gram in one (weight log 2).

    Image 1, "red ball" against "red ball ball", in units of log 2: unigrams ball 1 and ball 2, so 1·2 / (1·2) = 1;
    bigrams (red ball) and (red ball, ball ball), so 1 / √2; nothing longer in the prediction; 1 against 2 bigrams.
    Image 2 has its own reference of four words as prediction: every cosine is 1.
    """
    scores = cider_d(["red ball", "red cube on table"], [["red ball ball"], ["red cube on table"]])
    first = 10 * (1 + 1 / sqrt(2) + 0 + 0) / 4 * exp(-1 / 72)
    assert scores == pytest.approx([first, 10.0])


def test_repeating_a_word_is_clipped_to_the_reference():
    """Unigrams: "ball" 3 times against once, clipped to 1·1 / (3·1); nothing longer is shared; 2 bigrams against 0."""
    scores = cider_d(["ball ball ball", "cube"], [["ball"], ["cube"]])
    assert scores[0] == pytest.approx(10 * (1 / 3) / 4 * exp(-4 / 72))


def test_weights_follow_document_frequency_in_the_references():
    """Three images: "a" stands in two (log 3/2), "x" in one (log 3), "q" in none (log 3); no bigram is shared."""
    scores = cider_d(["a q", "z", "z"], [["a x"], ["a y"], ["w"]])
    common, rare = log(3 / 2), log(3)
    assert scores[0] == pytest.approx(10 / 4 * common ** 2 / (common ** 2 + rare ** 2))


def test_the_mean_over_references_counts_every_reference():
    one = cider_d(["red ball", "x"], [["red ball"], ["x"]])
    two = cider_d(["red ball", "x"], [["red ball", "green cone"], ["x"]])
    assert two[0] == pytest.approx(one[0] / 2)


def test_df_trap_the_score_of_a_set_is_not_the_mean_of_its_parts():
    predictions = ["ball", "ball", "cone", "cone"]
    references = [["red ball"], ["blue ball"], ["red cone"], ["blue cone"]]
    whole = cider_d(predictions, references).mean()
    parts = [cider_d(predictions[:2], references[:2]).mean(), cider_d(predictions[2:], references[2:]).mean()]
    assert np.mean(parts) == 0.0  # every ball picture says "ball": it tells nothing there
    assert whole > 1.0            # but it does among balls and cones


def test_an_image_listed_twice_changes_the_other_scores():
    predictions, references = ["green cube", "red ball", "red"], [["green cube"], ["red cone"], ["red"]]
    twice = cider_d(predictions + predictions[:1], references + references[:1])
    assert twice[1] > cider_d(predictions, references)[1] + 0.1


def test_one_image_alone_scores_zero():
    assert cider_d(["a red ball"], [["a red ball"]]).tolist() == [0.0]


def test_scores_stay_between_0_and_10_in_the_order_given():
    rng = np.random.default_rng(0)
    words = np.array("a red blue ball cube on under the box".split())
    references = [[" ".join(rng.choice(words, 6)) for _ in range(3)] for _ in range(30)]
    predictions = [captions[0] for captions in references[:15]] + [""] * 15
    scores = cider_d(predictions, references)
    assert scores.shape == (30,)
    assert scores.max() <= 10.0
    assert (scores[:15] > 1.0).all() and (scores[15:] == 0.0).all()
    assert cider_d(predictions[::-1], references[::-1]) == pytest.approx(scores[::-1])


@pytest.mark.parametrize("predictions, references", [
    ([], []),
    (["a ball"], []),
    (["a ball"], ["a ball"]),
    (["a ball", "a cube"], [["a ball"], []]),
])
def test_bad_inputs_are_refused(predictions, references):
    with pytest.raises(PeftkitError):
        cider_d(predictions, references)
