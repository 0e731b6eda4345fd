"""Metrics that score an answer by itself (VQA accuracy, exact match), and the table of all metrics by name.

VQA accuracy compares answers only after both sides went through the same text processing. Two such processings are in
use, and they differ in one step:

- `normalize_vqa`: the steps of the official VQAv2 code (https://github.com/GT-Vision-Lab/VQA);
- `normalize_evalai`: a word step first, then the same; used for TextVQA, VizWiz and OK-VQA (EvalAI, LLaVA, lmms-eval).
"""
import re
from collections.abc import Callable

import numpy as np

from peftkit.errors import choose
from peftkit.evaluation.cider import check_pairs, cider_d

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = {"a", "an", "the"}
NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(
    "zero one two three four five six seven eight nine ten".split())}

# The contractions that the official code knows, by their ending (the last row: whole words).
_CONTRACTED = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "n't've": "could had might should would",
    "'d": "he how it someone something there they where who you",
    "'d've": "he it she somebody someone something there they we who y'all you",
    "'ll": "how it somebody someone something they what who why y'all you",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
    "'ve": "could might must not should they we what where who would you",
    "": "ma'am o'clock 'ow's'at 'twas y'all",
}


def _misspelled_contractions() -> dict[str, str]:
    """Every contraction with one of its apostrophes missing → the contraction."""
    words = [stem + ending for ending, stems in _CONTRACTED.items() for stem in stems.split()]
    missing_one = {word[:at] + word[at + 1:]: word for word in words for at, letter in enumerate(word) if letter == "'"}
    return missing_one | {"somebody'd": "somebodyd"}  # the official table has this one the wrong way round


CONTRACTIONS = _misspelled_contractions()


def normalize_vqa(text: str) -> str:
    """An answer after the processing of the official VQAv2 code: "The 1,000 dogs!" → "1000 dogs".

    Punctuation marks become a space; a mark is deleted instead if it stands next to a space anywhere in the text, and
    all are if a comma stands between two digits. Full stops go unless a digit follows. Then words: lower case, number
    words up to ten to digits ("none" → "0"), no articles, apostrophes put back ("dont" → "don't"). Two things to know:
    the lettered answer "A" becomes empty, like every article; and the official code skips all of this for a question
    whose ten answers agree, which this function cannot know.
    """
    text = re.sub(r"[\n\t]", " ", text).strip()
    thousands_comma = re.search(r"\d,\d", text)
    cleaned = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or thousands_comma else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned)
    words = [NUMBERS.get(word, word) for word in cleaned.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalize_evalai(text: str) -> str:
    """An answer after the EvalAI processing: no commas or question marks, "'s" set apart, then `normalize_vqa`.

    So "john's dog" → "john 's dog", and "1,000-2" → "1000 2" where `normalize_vqa` alone gives "10002".
    """
    return normalize_vqa(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def vqa_accuracy(prediction: str, answers: list[str]) -> float:
    """VQA accuracy of one prediction against the answers of several people, 0 to 1 (Antol et al. 2015, EvalAI form).

    Both sides go through `normalize_evalai`. Each answer is left out once (by its place, so that equal answers stay);
    the prediction earns min(1, matches among the others / 3); the mean of these is the score. With ten answers, k of
    them equal to the prediction, that is 0, 0.3, 0.6, 0.9 for k = 0..3 and 1 from there on.
    With fewer than four answers the others cannot match three times, so all of them are asked for instead of three; one
    answer alone is an exact match of the processed texts. Raises `PeftkitError` for no answers or a bare string.
    """
    check_pairs([prediction], [answers])
    predicted = normalize_evalai(prediction)
    matches = [normalize_evalai(answer) == predicted for answer in answers]
    if len(matches) == 1:
        return float(matches[0])
    needed = min(3, len(matches) - 1)
    return float(np.mean([min(1.0, (sum(matches) - left_out) / needed) for left_out in matches]))


def exact_match(prediction: str, answers: list[str]) -> float:
    """1.0 if the prediction equals any accepted answer in lower case with white space collapsed, else 0.0.

    This is the OCR-VQA rule (strip, lower-case, compare, as in Qwen-VL's evaluation) with inner white space collapsed
    too. It keeps punctuation, unlike the GQA rule ("t-shirt" is not "tshirt"), and does not look for a letter inside an
    answer, unlike the ScienceQA rule ("B." is not "B").
    Raises `PeftkitError` for no answers or a bare string.
    """
    check_pairs([prediction], [answers])
    return float(_plain(prediction) in {_plain(answer) for answer in answers})


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _each(metric: Callable[[str, list[str]], float]) -> Callable[[list[str], list[list[str]]], np.ndarray]:
    """A metric of one example as a metric of a test set."""
    return lambda predictions, references: np.array([metric(*pair) for pair in zip(predictions, references)])


METRICS: dict[str, Callable[[list[str], list[list[str]]], np.ndarray]] = {
    "vqa_accuracy": _each(vqa_accuracy),
    "exact_match": _each(exact_match),
    "cider": lambda predictions, references: cider_d(predictions, references) / 10.0,
}


def score(metric: str, predictions: list[str], references: list[list[str]]) -> np.ndarray:
    """The score of every example under a metric of `METRICS`, shape (N,), each from 0 to 1 (CIDEr-D divided by 10).

    `predictions` are N strings, `references` N lists of accepted strings in the same order. "cider" needs the whole
    test set in one call (see `peftkit.evaluation.cider`).
    Raises `PeftkitError` for an unknown metric or predictions and references that do not fit together.
    """
    choose("metric", metric, METRICS)
    check_pairs(predictions, references)
    return METRICS[metric](predictions, references)
