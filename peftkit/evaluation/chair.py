"""CHAIR: how many of the objects that captions name are not there (Rohrbach et al. 2018, arXiv 1809.02156).

    CHAIR_i = hallucinated mentions / all mentions,        CHAIR_s = captions with a hallucination / all captions.

The truth about a picture is what its reference captions name. In the drawn world that is exact: a caption task's
reference lists everything that is there. Two choices:

- A caption mentions an object once, however often it names it, as in the paper's formula, which counts sets of objects.
  The authors' code (github.com/LisaAnne/Hallucination, utils/chair.py) counts every repetition, so that a caption that
  says the same thing again and again weighs more than others.
- An object is its name, whole and alone, without synonyms, plurals or colors: a star in the wrong color is no
  hallucination here. The probe `pope_adversarial` asks about those.
"""
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from ..errors import PeftkitError
from .cider import check_pairs, tokenize


@dataclass(frozen=True)
class Chair:
    """What N captions name, as counts per caption, each (N,) int.

    mentions: distinct objects that the caption names; hallucinated: those of them that are not there; present: distinct
    objects that are there. All rates are in [0, 1]; published numbers are times 100.
    """

    hallucinated: np.ndarray
    mentions: np.ndarray
    present: np.ndarray

    @property
    def chair_i(self) -> float:
        """Share of all mentions that are hallucinated.

        0 where nothing is mentioned at all: silence invents nothing, but it is no praise either, for `recall` is 0 too.
        """
        return float(self.hallucinated.sum() / max(1, self.mentions.sum()))

    @property
    def chair_s(self) -> float:
        """Share of captions with at least one hallucination."""
        return float((self.hallucinated > 0).mean())

    @property
    def recall(self) -> float:
        """Share of the objects that are there that the captions name (over all captions together)."""
        return float((self.mentions - self.hallucinated).sum() / self.present.sum())


def chair(predictions: list[str], references: list[list[str]], objects: Collection[str]) -> Chair:
    """Count the objects that captions name and that are not there.

    predictions: one caption per picture; references: the true captions of the same pictures, which together name all
    that is there; objects: the names to look for, one word each, compared in lower case. For the drawn world these are
    SHAPES + WORDS + DIGITS. Raises PeftkitError for no predictions, unequal lengths, strings in the place of lists, a
    name of several words, and references that name no object.
    """
    check_pairs(predictions, references)
    names = _names(objects)
    named = [names & set(tokenize(caption)) for caption in predictions]
    there = [names & set(tokenize(" ".join(captions))) for captions in references]
    if not any(there):
        raise PeftkitError(f"no reference names any of the objects {', '.join(sorted(names))}")
    invented = [mentioned - truth for mentioned, truth in zip(named, there)]
    return Chair(*(np.array([*map(len, sets)]) for sets in (invented, named, there)))


def _names(objects: Collection[str]) -> set[str]:
    if isinstance(objects, str) or len(objects) == 0:
        raise PeftkitError(f"objects is {objects!r}; accepted: a non-empty collection of names")
    for name in objects:
        if not isinstance(name, str) or tokenize(name) != [name.lower()]:
            raise PeftkitError(f"object {name!r}; accepted: a name of one word, which captions can be searched for")
    return {name.lower() for name in objects}
