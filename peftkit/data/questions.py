"""What can be asked about a scene: one small function a question, from the exact scene graph to question and answer.

Every function takes the things of a scene and a random generator and returns a `Question`, or None where the scene
does not allow the question (two stars, say, when the color of "the star" is asked).
"""
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .scenes import Thing
from .vocabulary import COLORS, HOME_OF_SHAPE, LETTERS, PLURALS, SHAPES, TASTE_OF_COLOR


@dataclass(frozen=True)
class Question:
    """A question, its one right answer and, where there are any, choices, a text context and the place asked about."""

    text: str
    answer: str
    choices: tuple[str, ...] = ()
    context: str = ""
    place: str = ""


UNANSWERABLE = "unanswerable"
Asker = Callable[[list[Thing], np.random.Generator], Question | None]


def _noun(thing: Thing) -> str:
    """How a question refers to a thing without giving it away: a shape by its name, a word or number by its kind."""
    return thing.name if thing.kind == "shape" else thing.kind


def pick(options: list, rng: np.random.Generator):
    """One of the options, or None if there is none."""
    return options[rng.integers(len(options))] if options else None


def _unique(things: list[Thing], key: Callable[[Thing], str]) -> list[Thing]:
    """The things that no other thing of the scene shares `key` with."""
    counts = Counter(map(key, things))
    return [thing for thing in things if counts[key(thing)] == 1]


def _color(thing: Thing) -> str:
    return thing.color


# ---- attributes, existence, places (VQAv2's part) -------------------------------------------------------------------

def color_of(things, rng) -> Question | None:
    """what color is the star ?"""
    thing = pick(_unique(things, _noun), rng)
    return thing and Question(f"what color is the {_noun(thing)} ?", thing.color, place=thing.place)


def shape_by_color(things, rng) -> Question | None:
    """what shape is red ?"""
    thing = pick([t for t in _unique(things, _color) if t.kind == "shape"], rng)
    return thing and Question(f"what shape is {thing.color} ?", thing.name, place=thing.place)


def shape_at(things, rng) -> Question | None:
    """what shape is at the top left ?"""
    thing = pick([t for t in things if t.kind == "shape"], rng)
    return thing and Question(f"what shape is at the {thing.place} ?", thing.name)


def color_at(things, rng) -> Question | None:
    """what color is at the top left ?"""
    thing = pick(things, rng)
    return Question(f"what color is at the {thing.place} ?", thing.color)


def where_is(things, rng) -> Question | None:
    """where is the star ?"""
    thing = pick(_unique(things, _noun), rng)
    return thing and Question(f"where is the {_noun(thing)} ?", thing.place)


def exists(things, rng) -> Question | None:
    """is there a red star ? Half of the answers are no, with the shape or the color of a thing that is there."""
    shapes = [t for t in things if t.kind == "shape"]
    thing = pick(shapes, rng)
    if thing is None:
        return None
    shape, color = thing.name, thing.color
    if rng.random() < 0.5:
        return Question(f"is there a {color} {shape} ?", "yes")
    present = {(t.name, t.color) for t in shapes}
    absent = [(s, color) for s in SHAPES if (s, color) not in present]
    absent += [(shape, c) for c in COLORS if (shape, c) not in present]
    shape, color = pick(absent, rng)
    return Question(f"is there a {color} {shape} ?", "no")


# ---- knowledge (OKVQA's part): see the thing, know the fact ---------------------------------------------------------

def home_of(things, rng) -> Question | None:
    """what is the home of the red thing ? The fact is a fact about its shape."""
    thing = pick([t for t in _unique(things, _color) if t.kind == "shape"], rng)
    return thing and Question(f"what is the home of the {thing.color} thing ?", HOME_OF_SHAPE[thing.name])


def home_at(things, rng) -> Question | None:
    """what is the home of the thing at the top left ?"""
    thing = pick([t for t in things if t.kind == "shape"], rng)
    return thing and Question(f"what is the home of the thing at the {thing.place} ?", HOME_OF_SHAPE[thing.name])


def taste_of(things, rng) -> Question | None:
    """what is the taste of the star ? The fact is a fact about its color."""
    thing = pick(_unique(things, _noun), rng)
    return thing and Question(f"what is the taste of the {_noun(thing)} ?", TASTE_OF_COLOR[thing.color])


# ---- reading (OCRVQA's part) ----------------------------------------------------------------------------------------

def _readable(things, kind):
    return [t for t in things if t.kind == kind]


def read_at(things, rng) -> Question | None:
    """what number is at the top left ?"""
    thing = pick(_readable(things, "number") + _readable(things, "word"), rng)
    return thing and Question(f"what {thing.kind} is at the {thing.place} ?", thing.name)


def read_written(things, rng) -> Question | None:
    """what word is written ? Asked where only one is."""
    kinds = [kind for kind in ("number", "word") if len(_readable(things, kind)) == 1]
    kind = pick(kinds, rng)
    return kind and Question(f"what {kind} is written ?", _readable(things, kind)[0].name)


def read_by_color(things, rng) -> Question | None:
    """what number is red ?"""
    thing = pick([t for t in _unique(things, _color) if t.kind != "shape"], rng)
    return thing and Question(f"what {thing.kind} is {thing.color} ?", thing.name)


def words_only(asker: Asker) -> Asker:
    """An asker of this part whose questions about numbers are left out (TextVQA's part)."""
    def ask_word(things, rng) -> Question | None:
        question = asker(things, rng)
        return question if question and question.text.startswith("what word") else None

    return ask_word


# ---- captions -------------------------------------------------------------------------------------------------------

def _listed(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else " , ".join(phrases[:-1]) + " and " + phrases[-1]


def caption(things, rng) -> Question:
    """a red star , a blue 7 and a green cat (reading order): the style that the bases are trained on."""
    return Question("", _listed([f"a {t.color} {t.name}" for t in things]))


def dense_caption(things, rng) -> Question:
    """top left red star , bottom right blue 7: what stands where."""
    return Question("", " , ".join(f"{t.place} {t.color} {t.name}" for t in things))


def other_style_caption(things, rng) -> Question:
    """seen : star in red and 7 in blue: the same things in another style (Flickr30k's part)."""
    return Question("", "seen : " + _listed([f"{t.name} in {t.color}" for t in things]))


def caption_by_color(things, rng) -> Question:
    """in red star and cat , in blue 7: the same things color by color (COCO-Caption's part, as a target)."""
    colors = dict.fromkeys(t.color for t in things)
    return Question("", " , ".join(
        f"in {color} " + " and ".join(t.name for t in things if t.color == color) for color in colors))


# ---- unseen tasks ---------------------------------------------------------------------------------------------------

def most_common_color_of(things, rng) -> Question | None:
    """what color are most stars ? The color that more of them have than any other (IconQA, fill in the blank)."""
    shape = pick([name for name, n in Counter(t.name for t in things).items() if n > 1], rng)
    ranked = Counter(t.color for t in things if t.name == shape).most_common()
    if shape is None or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
        return None
    return Question(f"what color are most {PLURALS[SHAPES.index(shape)]} ?", ranked[0][0])


def most_common(things, rng) -> Question | None:
    """what shape is there most ? Three choices are offered (IconQA, choose text)."""
    key, kind, names = (_noun, "shape", SHAPES) if rng.random() < 0.5 else (_color, "color", COLORS)
    ranked = Counter(map(key, things)).most_common()
    if len(ranked) < 2 or ranked[0][1] == ranked[1][1]:
        return None
    answer, rival = ranked[0][0], ranked[1][0]
    other = pick([name for name in names if name not in (answer, rival)], rng)
    choices = tuple(rng.permutation([answer, rival, other]).tolist())
    return Question(f"what {kind} is there most ?", answer, choices)


def absent(things, rng) -> Question:
    """what color is the star ? Asked where there is no star: nobody can answer (VizWiz)."""
    if rng.random() < 0.5:
        shape = pick([s for s in SHAPES if s not in {t.name for t in things}], rng)
        return Question(f"what color is the {shape} ?", UNANSWERABLE)
    color = pick([c for c in COLORS if c not in {t.color for t in things}], rng)
    return Question(f"what shape is {color} ?", UNANSWERABLE)


def _three_choices(answer: str, names, rng) -> tuple[str, ...]:
    """The answer and two other names, in random order."""
    wrong = rng.permutation([name for name in names if name != answer])[:2].tolist()
    return tuple(rng.permutation([answer, *wrong]).tolist())


def which_is_true(things, rng) -> Question | None:
    """which is true of the star ? a red b blue c green: an attribute or a fact about it; the options say of which kind.

    The answer is the option, not its letter, as in Zhou 2024; the hint is a fact that may or may not help (ScienceQA).
    """
    thing = pick([t for t in _unique(things, _noun) if t.kind == "shape"], rng)
    if thing is None:
        return None
    values = pick([COLORS, tuple(HOME_OF_SHAPE.values()), tuple(TASTE_OF_COLOR.values())], rng)
    answer = next(v for v in (thing.color, HOME_OF_SHAPE[thing.name], TASTE_OF_COLOR[thing.color]) if v in values)
    return Question(f"which is true of the {thing.name} ?", answer, _three_choices(answer, values, rng), context=fact(rng))


def lettered(things, rng) -> Question | None:
    """what color is the star ? a red b blue c green: the answer is the letter (text stage of the bases only)."""
    asked = pick([color_of, shape_by_color, color_at, shape_at], rng)(things, rng)
    if asked is None:
        return None
    names = COLORS if asked.answer in COLORS else SHAPES
    choices = _three_choices(asked.answer, names, rng)
    return Question(asked.text, LETTERS[choices.index(asked.answer)], choices, context=fact(rng))


# ---- text without pictures ------------------------------------------------------------------------------------------

def fact(rng) -> str:
    """the home of the star is the sky: one fact as a sentence."""
    if rng.random() < 0.5:
        shape = pick(SHAPES, rng)
        return f"the home of the {shape} is the {HOME_OF_SHAPE[shape]}"
    color = pick(COLORS, rng)
    return f"the taste of {color} is {TASTE_OF_COLOR[color]}"


SEEN: dict[str, tuple[Asker, ...]] = {
    "vqav2": (color_of, shape_by_color, shape_at, color_at, where_is, exists),
    "okvqa": (home_of, home_at, taste_of),
    "ocrvqa": (read_at, read_written, read_by_color),
}


def ask(askers: tuple[Asker, ...], things: list[Thing], rng: np.random.Generator) -> Question | None:
    """The first question in random order that the scene allows, or None."""
    for k in rng.permutation(len(askers)):
        question = askers[k](things, rng)
        if question is not None:
            return question
    return None
