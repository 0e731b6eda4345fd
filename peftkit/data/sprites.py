"""Sprites: everything that can stand in one cell of a scene, as a 16 x 16 coverage mask in [0, 1].

Shapes and words are drawn four times too large and reduced, so edges are smooth; each has variants of size and offset.
Digits are the 1,797 real handwritten scans of the UCI set that scikit-learn ships (Alpaydin & Kaynak 1998).
"""
from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits

from .vocabulary import SHAPES, WORDS

CELL = 16  # pixels
VARIANTS = 24  # of each shape and of each word
_ZOOM = 4
DIGIT_SPLITS = {"train": (0.0, 0.6), "validation": (0.6, 0.75), "test": (0.75, 1.0)}  # shares of the shuffled scans


@dataclass(frozen=True)
class Atlas:
    """All sprites. masks: (S, 16, 16) float32, sprite 0 is empty. shapes: (6, VARIANTS) and words: (12, VARIANTS) hold
    sprite numbers; digits[split][value] is an array of the sprite numbers of that split's scans."""

    masks: np.ndarray
    shapes: np.ndarray
    words: np.ndarray
    digits: dict[str, list[np.ndarray]]


def _reduce(canvas: Image.Image) -> np.ndarray:
    return np.asarray(canvas.resize((CELL, CELL), Image.Resampling.BOX), np.float32) / 255


def _polygon(corners: int, radius: float, inner: float, turn: float, x: float, y: float) -> list[tuple[float, float]]:
    """Corners of a star or regular polygon; `inner` is the inner radius as a share of `radius` (1 for a polygon)."""
    points = []
    for k in range(2 * corners):
        length = radius * (inner if k % 2 else 1)
        angle = turn + pi * k / corners
        points.append((x + length * sin(angle), y - length * cos(angle)))
    return points if inner < 1 else points[::2]


def _shape_mask(name: str, rng: np.random.Generator) -> np.ndarray:
    canvas = Image.new("L", (CELL * _ZOOM, CELL * _ZOOM))
    pen = ImageDraw.Draw(canvas)
    r = _ZOOM * rng.uniform(5.2, 6.8)
    x, y = _ZOOM * (CELL / 2 + rng.uniform(-1.1, 1.1, 2))
    turn = rng.uniform(-0.15, 0.15)
    if name in ("circle", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if name == "ring":
            pen.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), fill=0)
    elif name == "cross":
        w = r / 3
        pen.rectangle((x - r, y - w, x + r, y + w), fill=255)
        pen.rectangle((x - w, y - r, x + w, y + r), fill=255)
    else:
        corners, inner, extra = {"square": (4, 1, pi / 4), "triangle": (3, 1, 0), "star": (5, 0.42, 0)}[name]
        pen.polygon(_polygon(corners, 1.15 * r, inner, turn + extra, x, y), fill=255)
    return _reduce(canvas)


def _word_mask(word: str, rng: np.random.Generator) -> np.ndarray:
    canvas = Image.new("L", (CELL * _ZOOM, CELL * _ZOOM))
    font = ImageFont.load_default(size=_ZOOM * rng.uniform(8.0, 8.8))
    center = tuple(_ZOOM * (CELL / 2 + rng.uniform((-0.6, -2.5), (0.6, 2.5))))
    ImageDraw.Draw(canvas).text(center, word, fill=255, font=font, anchor="mm", stroke_width=0.6)
    return _reduce(canvas)


def _digit_mask(scan: np.ndarray) -> np.ndarray:
    """An 8 x 8 scan with values 0..16, enlarged to 14 x 14 and centered."""
    image = Image.fromarray((scan * (255 / 16)).astype(np.uint8)).resize((14, 14), Image.Resampling.BICUBIC)
    return np.pad(np.asarray(image, np.float32) / 255, 1)


@lru_cache(maxsize=1)
def atlas() -> Atlas:
    """Draw all sprites once per process (about 0.3 s); the same on every machine with the same Pillow."""
    rng = np.random.default_rng(20240607)
    shapes = [_shape_mask(name, rng) for name in SHAPES for _ in range(VARIANTS)]
    words = [_word_mask(word, rng) for word in WORDS for _ in range(VARIANTS)]
    scans = load_digits()
    masks = [np.zeros((CELL, CELL), np.float32), *shapes, *words, *map(_digit_mask, scans.images)]
    first_word, first_digit = 1 + len(shapes), 1 + len(shapes) + len(words)
    order = rng.permutation(len(scans.target))
    digits = {}
    for split, (start, stop) in DIGIT_SPLITS.items():
        part = order[int(start * len(order)):int(stop * len(order))]
        digits[split] = [first_digit + part[scans.target[part] == value] for value in range(10)]
    return Atlas(
        masks=np.stack(masks),
        shapes=np.arange(1, first_word).reshape(len(SHAPES), VARIANTS),
        words=np.arange(first_word, first_digit).reshape(len(WORDS), VARIANTS),
        digits=digits,
    )
