"""The three probes of hallucination: half yes, half no, and a no that is as tempting as the probe's name says."""
from collections import Counter

import numpy as np
import pytest

import peftkit
from peftkit.data import SPECS, ZHOU2024
from peftkit.data import probes as q
from peftkit.data.scenes import Thing, sample_scenes
from peftkit.data.vocabulary import COLORS, SHAPES

SCENES = 2000
PROBES = {"pope_random": q.pope_random, "pope_popular": q.pope_popular, "pope_adversarial": q.pope_adversarial}


@pytest.fixture(scope="module")
def graphs():
    scenes = sample_scenes(np.random.default_rng(5), SCENES, "test")
    return [scenes.things(i) for i in range(SCENES)]


@pytest.fixture(scope="module")
def asked(graphs):
    """Probe -> [(things, (color, shape), answer)] of every scene with a shape."""
    rng = np.random.default_rng(6)
    return {name: [(things, tuple(question.text.split()[3:5]), question.answer) for things in graphs
                   if (question := asker(things, rng)) is not None] for name, asker in PROBES.items()}


def named(rows) -> Counter:
    """How often a no names each (color, shape)."""
    return Counter(pair for _, pair, answer in rows if answer == "no")


def things_of(*phrases: str) -> list[Thing]:
    """things_of("red star", "blue cat"): a scene graph; what is no shape is a word."""
    pairs = [phrase.split() for phrase in phrases]
    return [Thing("shape" if name in SHAPES else "word", name, color, "top left") for color, name in pairs]


def lures(asker, things) -> set[str]:
    """All that a no of 300 draws names (a lure of six stays out of about 150 with chance 1e-11)."""
    rng = np.random.default_rng(7)
    asked = [asker(things, rng) for _ in range(300)]
    return {" ".join(question.text.split()[3:5]) for question in asked if question.answer == "no"}


def test_the_probes_are_tasks_in_the_words_that_the_bases_know():
    assert [name for name, spec in SPECS.items() if spec.role == "probe"] == list(PROBES)
    for name in PROBES:
        spec = SPECS[name]
        assert (spec.metric, spec.prompt, spec.style) == ("exact_match", SPECS["vqav2"].prompt, "mixed")
        assert name not in ZHOU2024


@pytest.mark.parametrize("name", PROBES)
def test_yes_is_half_of_the_answers_and_right(name, asked, graphs):
    assert len(asked[name]) == sum(any(t.kind == "shape" for t in things) for things in graphs)
    for things, pair, answer in asked[name]:
        assert answer == ("yes" if pair in {(t.color, t.name) for t in things} else "no")
    share = np.mean([answer == "yes" for _, _, answer in asked[name]])
    assert abs(share - 0.5) < 0.035  # three standard deviations of 1,900 coins


def test_a_random_no_may_name_every_pair_equally_often(asked):
    counts = list(named(asked["pope_random"]).values())
    assert len(counts) == 36 and max(counts) < 2 * np.mean(counts)  # five standard deviations of a count of 26


def test_a_popular_no_names_a_frequent_pair(asked):
    assert set(named(asked["pope_popular"])) == set(q.popular_pairs())


def test_the_popular_pairs_lead_a_fixed_sample_of_training_scenes():
    scenes = sample_scenes(np.random.default_rng(0), q.POPULAR_SCENES, "train")
    counts = Counter((COLORS[color], SHAPES[label]) for kind, label, color in
                     zip(scenes.kind.ravel(), scenes.label.ravel(), scenes.color.ravel()) if kind == 1)
    first = q.popular_pairs()
    q.popular_pairs.cache_clear()
    assert q.popular_pairs() == first and len(set(first)) == q.POPULAR
    assert max(counts.values()) < 1.2 * min(counts.values())  # popular by chance: the docstring says so
    assert np.mean([counts[pair] for pair in first]) > 1.02 * np.mean(list(counts.values()))


def test_an_adversarial_no_swaps_what_is_there(asked):
    def swapped(name):
        return np.mean([color in {t.color for t in things} and shape in {t.name for t in things}
                        for things, (color, shape), answer in asked[name] if answer == "no"])

    assert swapped("pope_adversarial") > 0.9 and swapped("pope_random") < 0.3


@pytest.mark.parametrize("things, expected", [
    (things_of("red star", "blue ring"), {"blue star", "red ring"}),
    (things_of("red star", "blue cat"), {"blue star"}),  # a word lends its color
    (things_of("red star", "red ring", "blue star"), {"blue ring"}),
    (things_of("red star", "red cat"), {f"red {shape}" for shape in SHAPES if shape != "star"}
     | {f"{color} star" for color in COLORS if color != "red"}),  # nothing to swap
])
def test_what_an_adversarial_no_names(things, expected):
    assert lures(q.pope_adversarial, things) == expected


@pytest.mark.parametrize("asker", PROBES.values())
def test_a_scene_without_shapes_is_not_asked_about(asker):
    assert asker(things_of("red cat", "blue dog"), np.random.default_rng(0)) is None


@pytest.mark.parametrize("name", PROBES)
def test_the_answer_follows_from_the_picture(name, read_scene, oracle):
    for row in peftkit.task(name, train_size=1, validation_size=1, test_size=60).test:
        assert row["answers"] == [oracle(row["question"], read_scene(np.asarray(row["image"])))]
