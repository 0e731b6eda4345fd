"""What the bases read while they are pre-trained: scenes of the train split with seen tasks, captions and plain text.

One example is a prefix (the picture, or the same scene put into words) and several short segments about it. Unseen
tasks never occur; their words do, in text, so that no embedding is left untrained.
"""
from dataclasses import dataclass

import numpy as np

from ..data import questions as q
from ..data.scenes import Scenes, Thing
from ..data.tasks import SPECS, prompt_text
from ..data.vocabulary import COLORS, DIGITS, PLURALS, SHAPES, TASTE_OF_COLOR

LETTERED = "hint : {context} . {question} choices {lettered_choices} letter"
_NUMBERS = ("one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Segment:
    """A piece of text after the prefix: `prompt` is read, `answer` is learned."""

    prompt: str
    answer: str


def question_segment(task: str, things: list[Thing], rng: np.random.Generator) -> Segment:
    """A question of a seen task (a dense caption where the scene allows none), as in the task's own prompt format."""
    question = q.ask(SPECS[task].askers, things, rng)
    if question is None:
        task, question = "dense_caption", q.dense_caption(things, rng)
    return _segment(SPECS[task].prompt, question)


def _segment(prompt: str, question: q.Question) -> Segment:
    row = {"question": question.text, "context": question.context, "choices": question.choices}
    return Segment(prompt_text(prompt, row) + " assistant", question.answer)


def caption_segments(things: list[Thing], rng: np.random.Generator) -> list[Segment]:
    """Both captions: the diet of the alignment stage."""
    return [question_segment(task, things, rng) for task in ("dense_caption", "caption")]


def seen_segments(things: list[Thing], rng: np.random.Generator) -> list[Segment]:
    """The instruction mix: a caption of either kind and seven questions of the three seen tasks."""
    tasks = ["vqav2"] * 3 + ["okvqa"] * 2 + ["ocrvqa"] * 2 + [str(rng.choice(["caption", "dense_caption"]))]
    return [question_segment(task, things, rng) for task in tasks]


def text_segments(things: list[Thing], rng: np.random.Generator) -> list[Segment]:
    """After a scene in words: seen questions, a lettered choice, a fact, and a plain sentence."""
    segments = seen_segments(things, rng)
    lettered = q.lettered(things, rng)
    if lettered is not None:
        segments.append(_segment(LETTERED, lettered))
    return segments + [Segment("text", q.fact(rng)), Segment("text", sentence(rng))]


def sentence(rng: np.random.Generator) -> str:
    """A sentence without a scene, for words that no seen task uses."""
    number, shape, color = rng.integers(len(_NUMBERS)), rng.integers(len(SHAPES)), rng.choice(COLORS)
    other = rng.choice(COLORS)
    return str(rng.choice([
        f"{PLURALS[shape]} are more things in the shape of the {SHAPES[shape]}",
        f"{_NUMBERS[number]} {PLURALS[shape]} or {DIGITS[number + 1]} icons",
        f"{color} is not {other}" if color != other else f"{color} and {other} is the same color",
        "how many icons are there ? most , more , same or fewer",
        "the answer is unanswerable if the picture is unclear",
        f"fill in the blank : {color} is {TASTE_OF_COLOR[color]}",
        "the picture shows the scene seen",
        "an icon on a question or which question is read briefly",
        "yes is true and no is not true",
    ]))


def scene_in_words(things: list[Thing]) -> str:
    """scene : top left red star , bottom right blue 7 ."""
    return "scene : " + ", ".join(f"{t.place} {t.color} {t.name} " for t in things) + "."


def segments_of(scenes: Scenes, diet, rng: np.random.Generator) -> list[list[Segment]]:
    """One list of segments a scene, drawn by `diet` (one of the functions above)."""
    return [diet(scenes.things(i), rng) for i in range(len(scenes))]
