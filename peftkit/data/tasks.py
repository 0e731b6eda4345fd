"""The tasks of the drawn world: eight that stand for the eight data sets of Zhou 2024, two caption tasks, three probes
of hallucination, and three more that stand for data sets of Huang 2024.

A task is three `datasets.Dataset` splits with the columns of real VQA and caption sets, a prompt format and a metric.
Real data with the same columns can take their place: `dataclasses.replace(task, train=..., test=...)`.
"""
import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral

import datasets
import numpy as np
from PIL import Image

from ..errors import PeftkitError, choose
from . import probes
from . import questions as q
from .scenes import SPLITS, degrade, sample_scenes
from .vocabulary import LETTERS, PLACES

FEATURES = datasets.Features({
    "image": datasets.Image(),
    "image_id": datasets.Value("string"),
    "question_id": datasets.Value("string"),
    "question": datasets.Value("string"),
    "answers": datasets.List(datasets.Value("string")),
    "choices": datasets.List(datasets.Value("string")),
    "context": datasets.Value("string"),
})


@dataclass(frozen=True)
class TaskSpec:
    """What a task asks. role: "seen" (in the bases' pre-training mix), "unseen", or "probe" (only tested on);
    style: of the scenes; askers: the questions; prompt: a format string over the columns; annotators: how many (equal)
    answers a row holds."""

    name: str
    stands_for: str
    role: str
    metric: str
    prompt: str
    askers: tuple
    style: str = "mixed"
    degraded: bool = False
    annotators: int = 1
    max_new_tokens: int = 4


_SHORT = "{question} short answer"
SPECS = {spec.name: spec for spec in (
    TaskSpec("scienceqa", "ScienceQA, questions with a picture", "unseen", "exact_match",
             "hint : {context} . {question} choices {lettered_choices} answer", (q.which_is_true,)),
    TaskSpec("vizwiz", "VizWiz", "unseen", "vqa_accuracy", "{question} unanswerable if unclear short answer",
             (q.color_of, q.shape_by_color), degraded=True, annotators=10),
    TaskSpec("iconqa_txt", "IconQA, choose text", "unseen", "exact_match",
             "{question} choices {plain_choices}", (q.most_common,), style="icons"),
    TaskSpec("iconqa_blank", "IconQA, fill in the blank", "unseen", "exact_match",
             "{question} fill the blank", (q.most_common_color_of,), style="icons"),
    TaskSpec("flickr30k", "Flickr30k captions", "unseen", "cider", "describe briefly", (q.other_style_caption,),
             max_new_tokens=28),
    TaskSpec("okvqa", "OKVQA", "seen", "vqa_accuracy", _SHORT, q.SEEN["okvqa"], annotators=10),
    TaskSpec("ocrvqa", "OCRVQA", "seen", "exact_match", _SHORT, q.SEEN["ocrvqa"]),
    TaskSpec("vqav2", "VQAv2", "seen", "vqa_accuracy", _SHORT, q.SEEN["vqav2"], annotators=10),
    TaskSpec("caption", "COCO captions", "seen", "cider", "describe the picture", (q.caption,), max_new_tokens=28),
    TaskSpec("dense_caption", "dense captions of the alignment stage", "seen", "cider", "describe where",
             (q.dense_caption,), max_new_tokens=28),
    TaskSpec("pope_random", "POPE, random absent objects", "probe", "exact_match", _SHORT, (probes.pope_random,)),
    TaskSpec("pope_popular", "POPE, popular absent objects", "probe", "exact_match", _SHORT, (probes.pope_popular,)),
    TaskSpec("pope_adversarial", "POPE, adversarial absent objects", "probe", "exact_match", _SHORT,
             (probes.pope_adversarial,)),
    TaskSpec("coco", "COCO captions, as a target", "unseen", "cider", "describe the scene", (q.caption_by_color,),
             max_new_tokens=28),
    TaskSpec("textvqa", "TextVQA", "seen", "vqa_accuracy", _SHORT, tuple(map(q.words_only, q.SEEN["ocrvqa"])),
             annotators=10),
    TaskSpec("gqa", "GQA", "seen", "exact_match", _SHORT, (q.where_is, q.shape_at, q.color_of, q.exists)),
)}
TRIES = 4  # draws for each question wanted, because some repeat
ZHOU2024 = ("scienceqa", "vizwiz", "iconqa_txt", "iconqa_blank", "flickr30k", "okvqa", "ocrvqa", "vqav2")


@dataclass(frozen=True)
class Task:
    """A task ready to train and test on; see `task`."""

    name: str
    stands_for: str
    role: str
    metric: str
    prompt: str
    max_new_tokens: int
    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset


def task(name: str, *, train_size: int = 1000, validation_size: int = 200, test_size: int = 400, seed: int = 0,
         questions: int = 1) -> Task:
    """Draw a task of the given sizes (examples per split).

    The same name, size and seed give the same rows on every machine; a larger split begins with the smaller one's seed
    but not its rows. questions: how many different ones are asked about a picture, one after the other; pictures that
    do not allow so many have fewer. Raises PeftkitError for an unknown name or a number below 1.
    """
    spec = SPECS[choose("task", name, SPECS)]
    sizes = dict(zip(SPLITS, (train_size, validation_size, test_size)))
    for what, number in [*((f"{split}_size", size) for split, size in sizes.items()), ("questions", questions)]:
        if not isinstance(number, Integral) or number < 1:
            raise PeftkitError(f"{what} is {number!r}; accepted: 1 or more")
    return _task(spec.name, tuple(sizes.items()), seed, questions)


@lru_cache(maxsize=32)
def _task(name: str, sizes: tuple[tuple[str, int], ...], seed: int, questions: int) -> Task:
    spec = SPECS[name]
    splits = {split: _draw_split(spec, split, size, seed, questions) for split, size in sizes}
    return Task(name, spec.stands_for, spec.role, spec.metric, spec.prompt, spec.max_new_tokens, **splits)


def prompt_text(template: str, row: dict) -> str:
    """Fill a prompt format from a row: any column, plus plain_choices (x , y , z) and lettered_choices (a x b y).

    Raises PeftkitError for a column that the row does not have.
    """
    choices = row.get("choices") or []
    values = {"question": "", "context": ""} | {column: value or "" for column, value in row.items()} | {
        "plain_choices": " , ".join(choices),
        "lettered_choices": " ".join(f"{letter} {choice}" for letter, choice in zip(LETTERS, choices)),
    }
    try:
        return template.format(**values)
    except KeyError as error:
        return choose("prompt column", error.args[0], values)


def _draw_split(spec: TaskSpec, split: str, size: int, seed: int, questions: int) -> datasets.Dataset:
    digest = hashlib.sha256(f"{spec.name}/{split}/{seed}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    rows = {column: [] for column in FEATURES}
    while len(rows["image"]) < size:
        scenes = sample_scenes(rng, size, split, spec.style)
        pictures, cut = scenes.draw(), np.full(len(scenes), -1)
        if spec.degraded:
            pictures, cut = degrade(rng, pictures)
        for i, key in enumerate(scenes.keys()):
            for question in _ask_several(spec, scenes.things(i), int(cut[i]), rng, questions):
                if len(rows["image"]) == size:
                    break
                _append(rows, f"{spec.name}/{split}/{len(rows['image'])}", f"{int(key):016x}", pictures[i], question,
                        spec.annotators)
    return datasets.Dataset.from_dict(rows, features=FEATURES)


def _ask_several(spec: TaskSpec, things: list, cut: int, rng: np.random.Generator, number: int) -> list[q.Question]:
    """Different questions about one picture: `number` of them, or what TRIES draws for each one wanted have found."""
    found = {}
    for _ in range(1 if number == 1 else TRIES * number):
        if question := _ask(spec, things, cut, rng):
            found.setdefault(question.text, question)
        if len(found) == number:
            break
    return list(found.values())


def _ask(spec: TaskSpec, things: list, cut: int, rng: np.random.Generator) -> q.Question | None:
    if not spec.degraded:
        return q.ask(spec.askers, things, rng)
    if rng.random() < 0.2:
        return q.absent(things, rng)
    question = q.ask(spec.askers, things, rng)
    if question and cut >= 0 and PLACES.index(question.place) // 3 == cut:
        return q.Question(question.text, q.UNANSWERABLE)
    return question


def _append(rows: dict, question_id: str, image_id: str, picture: np.ndarray, question: q.Question, annotators: int):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    row = {"image": {"bytes": file.getvalue(), "path": None}, "image_id": image_id, "question_id": question_id,
           "question": question.text, "answers": [question.answer] * annotators, "choices": list(question.choices),
           "context": question.context}
    for column, value in row.items():
        rows[column].append(value)
