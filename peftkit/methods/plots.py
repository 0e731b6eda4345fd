"""Two drawings of all methods: where each one sits in the model, and size against score."""
from collections.abc import Iterator, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

FAMILIES = {  # what a method does to the weights
    "selective": ("full", "language", "connector", "head", "layernorm", "bias", "spider", "random-mask",
                  "magnitude-mask", "gradient-mask", "l2-sp", "half"),
    "reparametrized": ("lora", "dora"),
    "added": ("ia3", "adapter", "multiway", "adalink", "prompt", "prefix", "prefix-peft", "side"),
}
PLACES = {  # where it acts by default
    "in every block": ("full", "language", "layernorm", "bias", "lora", "dora", "ia3", "adapter", "multiway", "prefix",
                       "prefix-peft"),
    "in front of the blocks": ("connector", "adalink", "prompt"),
    "in the last two blocks": ("spider", "random-mask", "magnitude-mask", "gradient-mask", "l2-sp", "half"),
    "behind or beside the blocks": ("head", "side"),
}
FAMILY_COLORS = {"selective": "#F2C14E", "reparametrized": "#0072B2", "added": "#009E73"}
PLACE_STYLES = dict(zip(PLACES, (("#0072B2", "o"), ("#009E73", "^"), ("#E69F00", "s"), ("#CC79A7", "D"))))
INK = "#444444"

RESIDUAL = 51  # x of the block's residual stream
# text, x and y (center) and width of the base's own parts; on the left the model, on the right one block
PARTS = [
    ("picture", 8, 4, 12), ("words", 32, 4, 12), ("vision tower", 8, 12, 13), ("connector", 8, 20, 13),
    ("embeddings", 32, 20, 13), ("block 1", 17, 40, 16), ("…", 17, 46, 16), ("block L−1", 17, 52, 16),
    ("block L", 17, 58, 16), ("head", 17, 67, 16),
    ("norm", 69, 9, 14), ("query", 61, 17, 9), ("key", 73, 17, 9), ("value", 85, 17, 9), ("attention", 73, 27, 33),
    ("output", 73, 34, 9), ("norm", 72, 44, 14), ("gate", 66, 54, 9), ("up", 84, 54, 9),
    ("silu(gate) × up", 75, 61, 27), ("down", 75, 69, 9),
]
LINEAR = ("query", "key", "value", "output", "gate", "up", "down")
ARROWS = [
    ((8, 6), (8, 10)), ((8, 14), (8, 18)), ((32, 6), (32, 18)), ((8, 22), (13, 29)), ((32, 22), (26, 29)),
    ((17, 33), (17, 38)), ((17, 60), (17, 65)),
    ((51, 5), (62, 9)), ((69, 11), (61, 15)), ((69, 11), (73, 15)), ((69, 11), (85, 15)), ((61, 19), (61, 25)),
    ((73, 19), (73, 25)), ((85, 19), (85, 25)), ((73, 29), (73, 32)), ((73, 36), (52, 39)),
    ((51, 42), (65, 44)), ((72, 46), (66, 52)), ((72, 46), (84, 52)), ((66, 56), (66, 59)), ((84, 56), (84, 59)),
    ((75, 63), (75, 67)), ((75, 71), (52, 74)), ((51, 1), (51, 82)),
]
TAGS = [  # method, x, y (center)
    ("full", 17, 73), ("connector", 20, 20), ("adalink", 10.5, 25.5), ("adalink", 29, 25.5), ("prompt", 4.4, 31),
    ("side", 3.5, 49), ("head", 30, 67), ("language", 34, 41), ("spider", 35.5, 62), ("random-mask", 35.5, 59),
    ("magnitude-mask", 35.5, 56), ("gradient-mask", 35.5, 53), ("l2-sp", 35.5, 50), ("half", 35.5, 47),
    ("bias", 80, 1), ("lora", 86.5, 1), ("dora", 93, 1), ("layernorm", 82.5, 9), ("layernorm", 85.5, 44),
    ("ia3", 73, 22), ("ia3", 85, 22), ("ia3", 75, 65), ("prefix", 95.5, 27), ("prefix-peft", 94.5, 22),
    ("adapter", 66, 49.5), ("adapter", 84, 49.5), ("adapter", 63, 72.6), ("multiway", 57, 61), ("multiway", 51, 78),
]
LINES = [  # what ties a tag to its place: family, xs, ys
    ("selective", [25.5, 26.3, 26.3, 25.5], [38.2, 38.2, 59.8, 59.8]), ("selective", [26.3, 31], [41, 41]),
    ("selective", [27.3, 28.1, 28.1, 27.3], [50.2, 50.2, 59.8, 59.8]), ("selective", [28.1, 30], [56, 56]),
    ("selective", [25, 28], [67, 67]), ("selective", [14.5, 16], [20, 20]), ("selective", [76, 79], [9, 9]),
    ("selective", [79, 82], [44, 44]), ("selective", [0.6, 43, 43, 0.6, 0.6], [8.5, 8.5, 73, 73, 8.5]),
    ("added", [3.5, 3.5, 9], [33.5, 67, 67]), ("added", [3.5, 9], [40, 40]), ("added", [3.5, 9], [46, 46]),
    ("added", [3.5, 9], [52, 52]), ("added", [3.5, 9], [58, 58]), ("added", [89.5, 92], [27, 27]),
    ("added", [88, 90], [25, 23.5]), ("added", [51, 57, 57, 51.5], [43, 47, 69, 73]),
]


def sites() -> tuple[Figure, pd.DataFrame]:
    """The model (left) and one of its blocks (right) with every method at its default place.

    Also returns what is drawn: method, x, y, family and tag (which one of the method's tags).
    """
    figure, axis = plt.subplots(figsize=(8, 6.8))
    axis.set(xlim=(-1.5, 101.5), ylim=(-2.5, 87))
    axis.set_axis_off()
    for x, width, title in ((-1, 45.5, "the model"), (45.5, 55.5, "one block of it, opened")):
        axis.add_patch(Rectangle((x, -2), width, 85, facecolor="#FAFAFA", edgecolor="#DDDDDD", zorder=0))
        axis.text(x, 84, title, weight="bold", color=INK)
    for start, end in ARROWS:
        axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#999999", "linewidth": 0.9}, zorder=1)
    for family, xs, ys in LINES:
        axis.plot(xs, ys, color=FAMILY_COLORS[family], linewidth=1.3, zorder=1)
    for text, x, y, width in PARTS:
        _part(axis, text, x, y, width)
    _tokens(axis)
    for y in (39.2, 74):
        axis.text(RESIDUAL, y, "+", ha="center", va="center", color=INK, zorder=5,
                  bbox={"boxstyle": "circle,pad=0.1", "facecolor": "white", "edgecolor": "#999999"})
    axis.text(76.5, 1, "at the dots of each linear layer:", ha="right", va="center", fontsize=7.5, color=INK)
    family_of = {method: family for family, methods in FAMILIES.items() for method in methods}
    for method, x, y in TAGS:
        _tag(axis, method, family_of[method], x, y)
    handles = [Line2D([], [], marker="s", linestyle="", color=color, markersize=9, label=family)
               for family, color in FAMILY_COLORS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    drawn = pd.DataFrame(TAGS, columns=["method", "x", "y"]).astype({"x": float, "y": float})
    return figure, drawn.assign(family=drawn["method"].map(family_of), tag=drawn.groupby("method").cumcount())


def _part(axis: Axes, text: str, x: float, y: float, width: float) -> None:
    """A part of the base; a linear layer has two dots, for the families of bias and of lora."""
    axis.add_patch(Rectangle((x - width / 2, y - 2), width, 4, facecolor="#EFEFEF", edgecolor="#AAAAAA", zorder=2))
    axis.text(x, y, text, ha="center", va="center", fontsize=8, color=INK, zorder=3)
    if text in LINEAR:
        for side, marker, family in ((-1, "s", "selective"), (1, "o", "reparametrized")):
            axis.plot(x + side * width / 2, y, marker, markersize=6, color=FAMILY_COLORS[family], zorder=4)


def _tag(axis: Axes, method: str, family: str, x: float, y: float) -> None:
    shape = {"selective": "square,pad=0.2", "reparametrized": "round,pad=0.25", "added": "round4,pad=0.25"}[family]
    axis.text(x, y, method, ha="center", va="center", fontsize=7.5, zorder=6,
              color="black" if family == "selective" else "white",
              bbox={"boxstyle": shape, "facecolor": FAMILY_COLORS[family], "edgecolor": "white", "linewidth": 0.8})


def _tokens(axis: Axes) -> None:
    """The sequence that enters the first block: virtual tokens, image tokens, words."""
    for number in range(11):
        color = FAMILY_COLORS["added"] if number < 2 else "#C4C4C4" if number < 6 else "#E4E4E4"
        axis.add_patch(Rectangle((8.6 + 2.2 * number, 29.6), 1.9, 2.8, facecolor=color, edgecolor="white", zorder=2))
    axis.text(33.5, 31, "tokens", va="center", fontsize=8, color=INK)


def size_and_score(runs: pd.DataFrame, levels: Mapping[str, float]) -> Figure:
    """Trainable parameters (log axis) against accuracy, with dashed lines at the named levels.

    runs: arm, place (of PLACES), trainable, seed, accuracy. A small dot is a seed, a large mark an arm's mean. Labels
    are moved apart, thin lines lead back.
    """
    figure, axis = plt.subplots(figsize=(8, 5.6))
    means = runs.groupby(["arm", "place", "trainable"], sort=False)["accuracy"].mean().reset_index()
    for place, (color, marker) in PLACE_STYLES.items():
        seeds, mean = runs[runs["place"] == place], means[means["place"] == place]
        axis.plot(seeds["trainable"], seeds["accuracy"], ".", color=color, alpha=0.5, markersize=4)
        axis.plot(mean["trainable"], mean["accuracy"], marker, color=color, markeredgecolor="white", markersize=8,
                  label=place)
    axis.set(xscale="log", xlabel="trainable parameters", ylabel="accuracy on test pictures", ylim=(0, 1),
             xlim=(means["trainable"].min() / 1.6, means["trainable"].max() * 3.5))
    levels = dict(sorted(levels.items(), key=lambda level: level[1]))
    for (text, height), place in zip(levels.items(), _apart(np.array(list(levels.values())), 0.035)):
        axis.axhline(height, color=INK, linestyle="--", linewidth=1)
        axis.text(0.01, place + 0.01, text, transform=axis.get_yaxis_transform(), fontsize=8, color=INK)
    for group in _neighbors(means):
        for row, height in zip(group.itertuples(), _apart(group["accuracy"].to_numpy(), 0.033)):
            axis.annotate(row.arm, (row.trainable, row.accuracy), (1.2 * group["trainable"].max(), height),
                          fontsize=7.5, va="center", color=INK,
                          bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none"},
                          arrowprops={"arrowstyle": "-", "color": "#BBBBBB", "linewidth": 0.7, "shrinkB": 3,
                                      "relpos": (0, 0.5)})
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return figure


def _neighbors(means: pd.DataFrame, factor: float = 1.5) -> Iterator[pd.DataFrame]:
    """Groups of arms of similar size, each sorted by accuracy."""
    ordered = means.sort_values("trainable")
    group = (ordered["trainable"] / ordered["trainable"].shift()).gt(factor).cumsum()
    return (part.sort_values("accuracy") for _, part in ordered.groupby(group))


def _apart(values: np.ndarray, gap: float) -> np.ndarray:
    """Heights near ascending `values` that are at least `gap` apart, centered on them."""
    steps = gap * np.arange(len(values))
    pushed = np.maximum.accumulate(values - steps) + steps
    return pushed - (pushed - values).mean()
