"""What notebook 04 draws of the studies that vary one thing: rates and steps (paths in the plane), and depth.

Scores are drawn in points; each drawing takes tidy data and returns the figure, for `peftkit.figures.save`.
"""
from collections.abc import Mapping
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..cells import Cells
from ..tidy import MEAN, over_seeds
from .plots import GRAY, IN_WORDS, NAMES, STYLE, legend
from .study import BASE, LAYERS, LAYERS_STUDY, LEVELS, MAIN, PATH_TARGETS, PATHS, PATHS_STUDY

RATE_STYLE = [  # the largest first
    {"linestyle": "-", "linewidth": 1.8, "markersize": 7}, {"linestyle": "--", "linewidth": 1.2, "markersize": 5},
    {"linestyle": ":", "linewidth": 1, "markersize": 4, "alpha": 0.8}]
FLOOR, TICKS = 102, (0, 20, 40, 50, 60, 70, 80, 90, 95, 97, 99)  # of the axis of what is lost


def paths(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds along each path, from the untouched base on: target, row, learning_rate, epoch, T, S; points."""
    found, keys = frame[frame["study"] == PATHS_STUDY], ["target", "row", "learning_rate"]
    means = found.groupby([*keys, "epoch"], sort=False, as_index=False)[["T", "S"]].mean()
    start = frame[(frame["study"] == MAIN) & (frame["row"] == "zero-shot") & frame["base"].isin(found["base"])]
    starts = means[keys].drop_duplicates().merge(start[["target", "T", "S"]].drop_duplicates("target"))
    data = pd.concat([starts.assign(epoch=0), means], ignore_index=True)
    return data.assign(T=100 * data["T"], S=100 * data["S"])[[*keys, "epoch", "T", "S"]]


def depths(frame: pd.DataFrame, base: str) -> pd.DataFrame:
    """Full tuning and SPIDER by the number of tuned blocks: target, method, layers, value (T or S), row, score, low,
    high; points."""
    layers = frame[frame["study"] == LAYERS_STUDY]
    same = (frame["study"] == MAIN) & frame["row"].isin(layers["row"]) & frame["target"].isin(layers["target"])
    rows = pd.concat([layers, frame[same & (frame["base"] == base)].assign(layers=LAYERS)])
    rows = rows[["target", "row", "layers", "seed", "T", "S"]].rename(columns={"row": "method"})
    rows = rows.melt(["target", "method", "layers", "seed"], ["T", "S"], "value", "score")
    return over_seeds(rows.assign(score=100 * rows["score"].astype(float)), ["target", "method", "layers", "value"])


def over_levels(cells: Cells) -> pd.DataFrame:
    """SPIDER minus each other row in S at equal T, paired by seed: target, rival, share (of the way to the highest
    common T, in percent; LEVELS), T, score (mean), low, high (95 % t interval); points. What has no runs has no row."""
    def kept(row: str, target: str, level: float, value: str = "S") -> pd.Series:
        return cells.mean(PATHS_STUDY, BASE, row, "tuned", target, level, value=value)

    found = []
    for level, target, rival in product(LEVELS, PATH_TARGETS, PATHS):
        if rival != "SPIDER":
            gaps, t = kept("SPIDER", target, level) - kept(rival, target, level), kept(rival, target, level, "T").mean()
            found += [(target, rival, round(100 * level), t, seed, gap) for seed, gap in gaps.items()]
    rows = pd.DataFrame(found, columns=["target", "rival", "share", "T", "seed", "score"])
    data = over_seeds(rows, ["target", "rival", "share", "T"])
    return data[data["row"] == MEAN].drop(columns="row")


# ---- drawings --------------------------------------------------------------------------------------------------------

def path_lines(data: pd.DataFrame, levels: Mapping[str, float]) -> Figure:
    """S against T after every epoch, a line a path from the untouched base on; the thinner, the smaller its rate. The
    axis of S is logarithmic in what is lost: near 100, where most paths are, a point takes most room.

    data: of `paths`; levels: target -> the highest T at which rows are compared, an upright dashed line.
    """
    targets = list(data["target"].unique())
    figure, axes = plt.subplots(1, len(targets), figsize=(4.2 * len(targets), 4.3), squeeze=False)
    for axis, target in zip(axes.flat, targets):
        part = data[data["target"] == target]
        for (row, rate), path in part.groupby(["row", "learning_rate"], sort=False):
            rates = sorted(part.loc[part["row"] == row, "learning_rate"].unique(), reverse=True)
            path = path.sort_values("epoch")
            axis.plot(path["T"], path["S"], **STYLE[row] | RATE_STYLE[rates.index(rate)])
        axis.plot(*part.loc[part["epoch"] == 0, ["T", "S"]].iloc[0], **STYLE["zero-shot"], markersize=9)
        axis.axvline(levels[target], color=GRAY, linestyle="--", linewidth=1)
        axis.set_yscale("function", functions=(lambda s: -np.log(FLOOR - s), lambda y: FLOOR - np.exp(-y)))
        axis.set(title=NAMES[target], xlabel="T: target, points", yticks=TICKS, ylim=(part["S"].min() - 3, 100.4))
    axes[0, 0].set_ylabel("S: sources, points")
    lines = [Line2D([], [], **style | {"color": GRAY, "marker": ""}, label=label)
             for style, label in zip(RATE_STYLE, ("largest rate", "middle rate", "smallest rate"))]
    legend(figure, ["zero-shot", *dict.fromkeys(data["row"])], lines, columns=3)
    return figure


def level_lines(data: pd.DataFrame) -> Figure:
    """SPIDER minus each rival in S, over the T at which they are compared; fields are 95 % t intervals.

    data: of `over_levels`.
    """
    targets = list(data["target"].unique())
    figure, axes = plt.subplots(1, len(targets), figsize=(4.2 * len(targets), 3.2), squeeze=False)
    for axis, target in zip(axes.flat, targets):
        axis.axhline(0, color=GRAY, linewidth=1)
        for rival, line in data[data["target"] == target].groupby("rival", sort=False):
            axis.fill_between(line["T"], line["low"], line["high"], color=STYLE[rival]["color"], alpha=0.2, linewidth=0)
            axis.plot(line["T"], line["score"], **STYLE[rival] | {"markersize": 5})
        axis.set(title=NAMES[target], xlabel="T at which rows are compared, points")
    axes[0, 0].set_ylabel("S: SPIDER − row, points")
    legend(figure, list(dict.fromkeys(data["rival"])))
    return figure


def by_depth(data: pd.DataFrame) -> Figure:
    """T (left) and S (right) by the number of tuned blocks; a row of panels a target. data: of `depths`."""
    targets = list(data["target"].unique())
    figure, axes = plt.subplots(len(targets), 2, figsize=(7, 2.3 * len(targets) + 0.5), squeeze=False, sharex=True)
    for line, target in zip(axes, targets):
        for axis, value in zip(line, ("T", "S")):
            part = data[(data["target"] == target) & (data["value"] == value)]
            for (row, group), shift in zip(part.groupby("method", sort=False), (-0.05, 0.05)):
                means, seeds = (group[(group["row"] == MEAN) == want].sort_values("layers") for want in (True, False))
                axis.plot(seeds["layers"] + shift, seeds["score"], ".", color=STYLE[row]["color"], alpha=0.4)
                axis.errorbar(means["layers"] + shift, means["score"], capsize=2, **{"markersize": 6} | STYLE[row],
                              yerr=[means["score"] - means["low"], means["high"] - means["score"]])
            axis.set(title=f"{NAMES[target]}: {IN_WORDS[value]}", xticks=sorted(part["layers"].unique()))
        line[0].set_ylabel("points")
    for axis in axes[-1]:
        axis.set_xlabel("blocks tuned, from the last")
    legend(figure, list(dict.fromkeys(data["method"])))
    return figure
