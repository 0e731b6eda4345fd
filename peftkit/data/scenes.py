"""Scenes: nine cells, each empty or holding one thing; the scene graph is exact, the picture is 48 x 48.

A scene belongs to the train, validation or test split by a hash of what it shows, so no two splits ever share one,
whoever draws them. Handwritten digits are split a second time, by the scan itself.
"""
from dataclasses import dataclass

import numpy as np

from ..errors import choose
from .sprites import CELL, VARIANTS, atlas
from .vocabulary import COLORS, DIGITS, PLACES, SHAPES, WORDS

GRID = 3
SIZE = GRID * CELL  # 48 pixels
KINDS = ("empty", "shape", "word", "number")
EMPTY, SHAPE, WORD, NUMBER = range(4)
NAMES = {SHAPE: SHAPES, WORD: WORDS, NUMBER: DIGITS}
SPLITS = ("train", "validation", "test")
_SHARE_OF_TENTHS = {"train": range(0, 7), "validation": range(7, 8), "test": range(8, 10)}
_PALETTE = np.array([[225, 40, 40], [40, 170, 60], [50, 90, 230], [235, 205, 40], [150, 60, 190], [245, 135, 30]])


@dataclass(frozen=True)
class Thing:
    """One thing of a scene graph: kind ("shape", "word", "number"), name ("star", "cat", "7"), color, place."""

    kind: str
    name: str
    color: str
    place: str


@dataclass(frozen=True)
class Scenes:
    """N scenes as arrays over their nine cells in reading order.

    kind, label, color, sprite: (N, 9) int; label counts within the kind. ground: (N, 3) background color in 0..255.
    """

    kind: np.ndarray
    label: np.ndarray
    color: np.ndarray
    sprite: np.ndarray
    ground: np.ndarray

    def __len__(self) -> int:
        return len(self.kind)

    def take(self, index) -> "Scenes":
        """The scenes at `index` (anything that numpy indexes with)."""
        return Scenes(*(getattr(self, field)[index] for field in self.__dataclass_fields__))

    def things(self, i: int) -> list[Thing]:
        """The scene graph of scene i, in reading order."""
        return [Thing(KINDS[k], NAMES[k][self.label[i, cell]], COLORS[self.color[i, cell]], PLACES[cell])
                for cell, k in enumerate(self.kind[i]) if k != EMPTY]

    def keys(self) -> np.ndarray:
        """(N,) uint64: equal exactly when two scenes show the same things in the same places (up to hash collision)."""
        code = np.where(self.kind == EMPTY, 0, 1 + self.kind * 1000 + self.label * 10 + self.color).astype(np.uint64)
        key = np.full(len(self), 0x9E3779B97F4A7C15, np.uint64)
        for cell in range(GRID * GRID):  # one multiply-xorshift round a cell; uint64 arithmetic wraps
            key = (key ^ code[:, cell]) * np.uint64(0xBF58476D1CE4E5B9)
            key ^= key >> np.uint64(29)
        return key

    def draw(self) -> np.ndarray:
        """(N, 48, 48, 3) uint8 pictures."""
        masks = atlas().masks[self.sprite][..., None]  # (N, 9, 16, 16, 1)
        ground = self.ground[:, None, None, None].astype(np.float32)  # (N, 1, 1, 1, 3)
        ink = _PALETTE.astype(np.float32)[self.color][:, :, None, None]  # (N, 9, 1, 1, 3)
        cells = (ground + masks * (ink - ground)).astype(np.uint8)  # (N, 9, 16, 16, 3)
        rows = cells.reshape(-1, GRID, GRID, CELL, CELL, 3).swapaxes(2, 3)  # (N, row, y, column, x, 3)
        return rows.reshape(-1, SIZE, SIZE, 3)


def sample_scenes(rng: np.random.Generator, n: int, split: str, style: str = "mixed") -> Scenes:
    """Draw n scenes of a split at random.

    style "mixed": 2 to 5 shapes, words and numbers of any color; "icons": 3 to 7 shapes of two or three kinds and two
    colors, so that counting and comparing mean something. Raises PeftkitError for an unknown split or style.
    """
    choose("split", split, SPLITS)
    layout = {"mixed": _mixed, "icons": _icons}[choose("scene style", style, ("mixed", "icons"))]
    parts, missing = [], n
    while missing > 0:
        trial = int(1.2 * missing * 10 / len(_SHARE_OF_TENTHS[split])) + 16
        scenes = _with_sprites(rng, split, *layout(rng, trial))
        wanted = np.isin(scenes.keys() % np.uint64(10), np.array(_SHARE_OF_TENTHS[split], np.uint64))
        parts.append(scenes.take(np.flatnonzero(wanted)[:missing]))
        missing -= len(parts[-1])
    return Scenes(*(np.concatenate([getattr(p, f) for p in parts]) for f in Scenes.__dataclass_fields__))


def _occupied(rng: np.random.Generator, n: int, low: int, high: int) -> np.ndarray:
    """(n, 9) bool: between low and high random cells of each scene."""
    rank = rng.random((n, GRID * GRID)).argsort(axis=1).argsort(axis=1)
    return rank < rng.integers(low, high + 1, (n, 1))


def _mixed(rng: np.random.Generator, n: int):
    full = _occupied(rng, n, 2, 5)
    kind = np.where(full, rng.choice([SHAPE, WORD, NUMBER], full.shape, p=[0.6, 0.2, 0.2]), EMPTY)
    counts = np.array([1, len(SHAPES), len(WORDS), len(DIGITS)])
    label = rng.integers(0, counts[kind])
    return kind, label, np.where(full, rng.integers(0, len(COLORS), full.shape), 0)


def _icons(rng: np.random.Generator, n: int):
    full = _occupied(rng, n, 3, 7)
    few_shapes = rng.random((n, len(SHAPES))).argsort(axis=1)[:, :3]
    few_colors = rng.random((n, len(COLORS))).argsort(axis=1)[:, :3]
    label = np.take_along_axis(few_shapes, rng.choice(3, full.shape, p=[0.5, 0.3, 0.2]), axis=1)
    color = np.take_along_axis(few_colors, rng.choice(3, full.shape, p=[0.5, 0.3, 0.2]), axis=1)
    return np.where(full, SHAPE, EMPTY), np.where(full, label, 0), np.where(full, color, 0)


def _with_sprites(rng: np.random.Generator, split: str, kind, label, color) -> Scenes:
    sheet = atlas()
    variant = rng.integers(0, VARIANTS, kind.shape)
    sprite = np.zeros(kind.shape, np.int64)
    for code, table in ((SHAPE, sheet.shapes), (WORD, sheet.words)):
        sprite = np.where(kind == code, table[np.where(kind == code, label, 0), variant], sprite)
    for value in range(len(DIGITS)):
        here = (kind == NUMBER) & (label == value)
        sprite[here] = rng.choice(sheet.digits[split][value], here.sum())
    ground = rng.integers(215, 250, (len(kind), 1)) - rng.integers(0, 12, (len(kind), 3))
    return Scenes(kind, label, color, sprite, ground)


def degrade(rng: np.random.Generator, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spoil pictures as a hurried photographer would (the part that VizWiz plays).

    Each picture, (N, 48, 48, 3) uint8, is blurred, darkened, or has one row of cells cut off. Returns the pictures and
    cut: (N,) int, the row of cells that is gone (0 to 2), or -1.
    """
    spoiled = pictures.astype(np.float32)
    fault = rng.integers(0, 3, len(pictures))
    blur = spoiled[fault == 0]
    for axis in (1, 2):
        blur = sum(np.roll(blur, shift, axis) for shift in (-1, 0, 1)) / 3
    spoiled[fault == 0] = blur
    dark = rng.uniform(0.25, 0.5, (len(pictures), 1, 1, 1)).astype(np.float32)
    spoiled = np.where((fault == 1)[:, None, None, None], spoiled * dark, spoiled)
    cut = np.where(fault == 2, rng.integers(0, GRID, len(pictures)), -1)
    gone = np.repeat(np.arange(GRID)[None] == cut[:, None], CELL, axis=1)  # (N, 48) rows of pixels
    return np.where(gone[:, :, None, None], 0, spoiled).astype(np.uint8), cut
