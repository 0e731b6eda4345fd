"""Every question has one right answer, the one that the scene graph gives."""
import numpy as np
import pytest

from peftkit.data import questions as q
from peftkit.data.scenes import sample_scenes
from peftkit.data.tasks import SPECS, prompt_text
from peftkit.data.vocabulary import COLORS, HOME_OF_SHAPE, LETTERS, PLURALS, SHAPES, TASTE_OF_COLOR, vocabulary
from peftkit.zoo.mix import scene_in_words, text_segments

SCENES = 300
KINDS = {"color": COLORS, "home": HOME_OF_SHAPE.values(), "taste": TASTE_OF_COLOR.values()}
ASKERS = [*{asker for askers in q.SEEN.values() for asker in askers}, q.most_common_color_of, q.most_common,
          q.absent]
ASKERS.sort(key=lambda asker: asker.__name__)
STYLE = {q.most_common_color_of: "icons", q.most_common: "icons"}


def graphs(style="mixed", split="train"):
    scenes = sample_scenes(np.random.default_rng(1), SCENES, split, style)
    return [scenes.things(i) for i in range(SCENES)]


def asked(asker, style=None):
    """(things, question) of every scene that allows the question."""
    rng = np.random.default_rng(2)
    pairs = [(things, asker(things, rng)) for things in graphs(style or STYLE.get(asker, "mixed"))]
    return [(things, question) for things, question in pairs if question is not None]


@pytest.mark.parametrize("asker", ASKERS, ids=lambda asker: asker.__name__)
def test_the_answer_follows_from_the_graph(asker, oracle):
    pairs = asked(asker)
    assert len(pairs) > SCENES / 4
    for things, question in pairs:
        assert question.answer == oracle(question.text, things)


@pytest.mark.parametrize("asker", [a for a in ASKERS if a is not q.absent], ids=lambda asker: asker.__name__)
def test_no_answer_is_the_answer_of_most_scenes(asker):
    answers = [question.answer for _, question in asked(asker)]
    assert max(answers.count(answer) for answer in set(answers)) < 0.6 * len(answers)


@pytest.mark.parametrize("asker", [q.color_of, q.shape_by_color])
def test_the_place_of_a_question_is_where_its_thing_stands(asker, oracle):
    for things, question in asked(asker):
        others = [t for t in things if t.place != question.place]
        assert question.place and oracle(question.text, others) == q.UNANSWERABLE


def test_a_no_names_a_shape_or_a_color_that_is_there():
    answers = []
    for things, question in asked(q.exists):
        color, shape = question.text.split()[3:5]
        answers.append(question.answer)
        assert {color, shape} & ({t.color for t in things} | {t.name for t in things})
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_most_common_offers_three_choices_with_the_answer_at_any_place():
    places = []
    for things, question in asked(q.most_common):
        names = COLORS if question.text.split()[1] == "color" else SHAPES
        assert len(set(question.choices)) == 3 and set(question.choices) <= set(names)
        places.append(question.choices.index(question.answer))
    assert set(places) == {0, 1, 2}


def test_the_letter_stands_before_the_right_choice(oracle):
    letters = []
    for things, question in asked(q.lettered):
        assert len(set(question.choices)) == 3
        assert question.choices[LETTERS.index(question.answer)] == oracle(question.text, things)
        letters.append(question.answer)
    assert min(letters.count(letter) for letter in LETTERS) > SCENES / 6


def test_which_is_true_offers_one_true_option_of_three_of_a_kind():
    kinds = set()
    for things, question in asked(q.which_is_true):
        thing = next(t for t in things if t.name == question.text.split()[5])
        truths = {thing.color, HOME_OF_SHAPE[thing.name], TASTE_OF_COLOR[thing.color]}
        assert truths & set(question.choices) == {question.answer} and len(set(question.choices)) == 3
        kinds.add(next(kind for kind, values in KINDS.items() if set(question.choices) <= set(values)))
    assert kinds == set(KINDS)


def test_a_scene_of_one_kind_that_allows_no_question_gives_none():
    pair = [t for t in graphs()[0] if t.kind == "shape"][:1] * 2
    rng = np.random.default_rng(0)
    assert q.color_of(pair, rng) is None
    assert q.read_at(pair, rng) is None
    assert q.ask((q.read_at, q.color_of), pair, rng) is None


# ---- captions --------------------------------------------------------------------------------------------------------

def phrases(caption: str) -> list[list[str]]:
    return [part.split() for part in caption.replace(" and ", " , ").split(" , ")]


def test_captions_list_every_thing_once_in_reading_order():
    rng = np.random.default_rng(0)
    for things in graphs():
        plain = phrases(q.caption(things, rng).answer)
        assert plain == [["a", t.color, t.name] for t in things]
        dense = phrases(q.dense_caption(things, rng).answer)
        assert dense == [[*t.place.split(), t.color, t.name] for t in things]
        opening, other = q.other_style_caption(things, rng).answer.split(" : ")
        assert opening == "seen"
        assert phrases(other) == [[t.name, "in", t.color] for t in things]


# ---- words -----------------------------------------------------------------------------------------------------------

def test_plurals_are_those_of_the_shapes():
    assert all(plural in (f"{shape}s", f"{shape}es") for shape, plural in zip(SHAPES, PLURALS))


def test_the_vocabulary_has_no_word_twice():
    assert len(vocabulary()) == len(set(vocabulary()))


@pytest.mark.parametrize("name", SPECS)
def test_the_vocabulary_covers_prompts_and_answers_of_a_task(name):
    spec, rng, words = SPECS[name], np.random.default_rng(0), set(vocabulary())
    for split in ("train", "test"):
        for things in graphs(spec.style, split):
            question = q.ask(spec.askers, things, rng)
            if question is None:
                continue
            row = {"question": question.text, "context": question.context, "choices": question.choices}
            text = f"user {prompt_text(spec.prompt, row)} assistant {question.answer} {q.UNANSWERABLE}"
            assert not set(text.split()) - words, text


def test_the_vocabulary_covers_the_text_of_pre_training():
    rng, words = np.random.default_rng(0), set(vocabulary())
    for things in graphs():
        text = [scene_in_words(things), *(f"{s.prompt} {s.answer}" for s in text_segments(things, rng))]
        assert not set(" ".join(text).split()) - words, text
