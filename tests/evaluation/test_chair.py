import pytest

import peftkit
from peftkit.data.vocabulary import DIGITS, SHAPES, WORDS
from peftkit.errors import PeftkitError
from peftkit.evaluation import chair

OBJECTS = SHAPES + WORDS + DIGITS


def test_an_example_by_hand():
    """Three captions: a dog that is not there beside two things that are; all right; a ring and a 7 where a star is.

    Mentions 3 + 2 + 2, hallucinated 1 + 0 + 2, there 3 + 2 + 1 of which 2 + 2 + 0 are named.
    """
    found = chair(["a red star , a red sun and a blue dog", "a green 7 and a red cat", "a ring , a 7"],
                  [["a red star , a blue cat and a red sun"], ["a green 7 and a red cat"], ["a red star"]], OBJECTS)
    assert found.hallucinated.tolist() == [1, 0, 2]
    assert found.mentions.tolist() == [3, 2, 2]
    assert found.present.tolist() == [3, 2, 1]
    assert found.chair_i == 3 / 7
    assert found.chair_s == 2 / 3
    assert found.recall == 4 / 6


def test_a_caption_mentions_an_object_once():
    found = chair(["a dog , a dog , a dog and a star"], [["a star and a star"]], OBJECTS)
    assert (found.hallucinated.tolist(), found.mentions.tolist(), found.present.tolist()) == ([1], [2], [1])
    assert found.chair_i == 1 / 2


def test_all_references_of_a_picture_tell_what_is_there():
    one = chair(["a star and a dog"], [["a star"]], OBJECTS)
    both = chair(["a star and a dog"], [["a star", "a cat and a dog"]], OBJECTS)
    assert (one.chair_i, one.recall) == (1 / 2, 1)
    assert (both.chair_i, both.recall) == (0, 2 / 3)


def test_names_are_whole_words_in_any_case_and_a_color_is_not_an_object():
    found = chair(["Seen: a STAR, starry stars; 17 concatenated cats"], [["a blue star"]], OBJECTS)
    assert found.mentions.tolist() == [1] and found.chair_i == 0
    assert chair(["a red Star"], [["a blue star"]], ["STAR"]).recall == 1


def test_a_silent_model_hallucinates_nothing_and_recalls_nothing():
    found = chair(["", "what is it ?"], [["a star"], ["a dog"]], OBJECTS)
    assert (found.chair_i, found.chair_s, found.recall) == (0, 0, 0)


@pytest.mark.parametrize("name", ["caption", "dense_caption", "flickr30k"])
def test_the_references_of_the_drawn_world_are_free_of_hallucination(name):
    rows = peftkit.task(name, train_size=1, validation_size=1, test_size=40).test
    truth = [answers[0] for answers in rows["answers"]]
    right, shifted = (chair(captions, rows["answers"], OBJECTS) for captions in (truth, truth[1:] + truth[:1]))
    assert (right.chair_i, right.chair_s, right.recall) == (0, 0, 1)
    assert shifted.chair_i > 0.5 and shifted.recall < 0.5  # captions of other pictures


@pytest.mark.parametrize("predictions, references, objects, message", [
    ([], [], OBJECTS, "no predictions"),
    (["a star"], [], OBJECTS, "1 predictions but 0 lists of references"),
    (["a star"], ["a star"], OBJECTS, "references 0 are 'a star'"),
    ("a", [["a star"]], "star", "objects is 'star'"),
    ([None], [["a star"]], OBJECTS, "prediction 0 is None"),
    (["a star"], [["a star"]], [], r"objects is \[\]"),
    (["a star"], [["a star"]], ["hot dog"], "object 'hot dog'; accepted: a name of one word"),
    (["a star"], [["a star"]], [7], "object 7; accepted"),
    (["a star"], [["a star"]], ["dog", "cat"], "no reference names any of the objects cat, dog"),
])
def test_bad_inputs_are_refused(predictions, references, objects, message):
    with pytest.raises(PeftkitError, match=message):
        chair(predictions, references, objects)
