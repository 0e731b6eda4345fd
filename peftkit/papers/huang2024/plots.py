"""The figures of notebook 04 about rows and bases, and the tidy data behind them. Scores are drawn in points.

Each drawing takes tidy data and returns the figure, for `peftkit.figures.save`. Verdicts are drawn by
`peftkit.papers.zhou2024.plots.verdicts`, which takes any ledger.
"""
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from math import ceil

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...figures import METHOD_STYLE
from ..cells import Cells
from ..tidy import MEAN, over_seeds
from .study import AFTERWARDS, CONTROLS, MAIN, SOURCES, study_of

GRAY, GREEN, SKY, ORANGE, PINK = "#555555", "#009E73", "#56B4E9", "#E69F00", "#CC79A7"
STYLE = {  # row -> color and marker: rows of one idea share a color
    "zero-shot": METHOD_STYLE["none"],
    "full": {"color": "#000000", "marker": "s"},
    "SPIDER": {"color": GREEN, "marker": "*", "markersize": 12},
    "discrepancy mask": {"color": GREEN, "marker": "^"},
    "random mask": {"color": SKY, "marker": "v"},
    "magnitude mask": {"color": SKY, "marker": "<"},
    "gradient mask": {"color": SKY, "marker": ">"},
    "L2-SP": {"color": ORANGE, "marker": "D"},
    "half": {"color": ORANGE, "marker": "p"},
    **{name: {"color": PINK, "marker": marker} for name, marker in
       zip([name for name in AFTERWARDS if name not in CONTROLS], "PXvd")},
    "LoRA": METHOD_STYLE["lora"],
    "DoRA": {"color": METHOD_STYLE["lora"]["color"], "marker": "^"},
    "adapter": METHOD_STYLE["adapter"],
}
NAMES = {"flickr30k": "Flickr30k", "coco": "COCO", "scienceqa": "ScienceQA", "iconqa_txt": "IconQA", "okvqa": "OKVQA",
         "textvqa": "TextVQA", "gqa": "GQA", "ocrvqa": "OCRVQA"}
IN_WORDS = {"T": "T, target", "S": "S, sources", "H": "H, harmonic mean", "O": "O, mean of S and T"}


# ---- data ------------------------------------------------------------------------------------------------------------

def plane(frame: pd.DataFrame, base: str) -> pd.DataFrame:
    """T and S of the main study on a base, in points: target, row, seed, T, S, front.

    seed is the seed, or "mean", whose `front` says whether no other row has as much of both (else empty). Our control
    arms are left out.
    """
    main = frame[(frame["study"] == MAIN) & (frame["base"] == base) & frame["row"].isin(STYLE)]
    main = main.assign(T=100 * main["T"], S=100 * main["S"], seed=main["seed"].astype(str))
    keys = ["target", "row"]
    means = main.groupby(keys, sort=False, as_index=False)[["T", "S"]].mean().assign(seed=MEAN)
    means["front"] = False
    for _, part in means.groupby("target"):
        means.loc[part.index, "front"] = on_front(part[["T", "S"]])
    data = pd.concat([means, main[main["row"] != "zero-shot"]], ignore_index=True)
    return data[[*keys, "seed", "T", "S", "front"]].astype({"front": "boolean"})


def on_front(points: pd.DataFrame) -> np.ndarray:
    """Which points no other one beats: none has as much of every column and more of one."""
    values = points.to_numpy(dtype=float)  # (points, columns)
    as_much = (values[None] >= values[:, None]).all(axis=2)
    more = (values[None] > values[:, None]).any(axis=2)
    return ~(as_much & more).any(axis=1)


def differences(cells: Cells, pairs: Mapping[str, tuple[str, str]], values: Iterable[str],
                places: Mapping[str, tuple]) -> pd.DataFrame:
    """First minus second row, paired by seed, in points: pair, value, place, row ("mean" or seed), score, low, high.

    pairs: name -> (first, second); places: name -> (base, target), each a name or a tuple to be averaged. low, high:
    95 % Student-t interval, of means over two seeds or more. What has no runs has no row.
    """
    def column(row: str, value: str, place: tuple) -> pd.Series:
        base, target = place
        return cells.mean(study_of(row), base, row, "tuned", target, value=value)

    found = []
    for (name, (first, second)), value, place in product(pairs.items(), values, places):
        gaps = column(first, value, places[place]) - column(second, value, places[place])
        found += [(name, value, place, str(seed), gap) for seed, gap in gaps.dropna().items()]
    rows = pd.DataFrame(found, columns=["pair", "value", "place", "seed", "score"])
    return over_seeds(rows, ["pair", "value", "place"])


def forgotten(frame: pd.DataFrame, base: str, row: str = "full") -> pd.DataFrame:
    """What each source loses (below zero) or wins when a target is tuned: target, source, score; points, means."""
    main = frame[(frame["study"] == MAIN) & (frame["base"] == base)]
    means = main.groupby(["row", "target"], sort=False)[list(SOURCES)].mean()
    change = 100 * (means.loc[row] - means.loc["zero-shot"]).rename_axis("target")
    return change.reset_index().melt("target", var_name="source", value_name="score")


# ---- drawings --------------------------------------------------------------------------------------------------------

def base_quality(known: pd.DataFrame, change: pd.DataFrame, goal: float, fall: float) -> Figure:
    """Left: zero-shot scores of the sources by base, with the goal as a line. Right: the change of each source by
    target under full tuning, and in the last row that of S, their mean; `fall` is stated in the title.

    known: base, source, score; change: of `forgotten`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), width_ratios=(1, 1.3))
    for (base, part), shift, marker in zip(known.groupby("base", sort=False), (-0.2, 0, 0.2), "os^"):
        left.plot(np.arange(len(part)) + shift, part["score"], marker, label=base)
    left.axhline(goal, color=GRAY, linestyle="--", label="goal")
    left.set_xticks(range(known["source"].nunique()), [NAMES[name] for name in known["source"].unique()], fontsize=8)
    left.set(ylabel="zero-shot score, points", ylim=(min(goal, known["score"].min()) - 8, 101))
    left.legend(fontsize=8, loc="lower left", ncols=2)
    table = change.pivot_table(index="source", columns="target", values="score", sort=False)
    table.loc["S"] = table.mean()
    limit = table.abs().max().max() or 1.0
    drawn = right.imshow(table, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    for (i, j), value in np.ndenumerate(table.to_numpy()):
        right.text(j, i, f"{value:+.0f}", ha="center", va="center", fontsize=9,
                   color="white" if abs(value) > 0.6 * limit else "black")
    right.axhline(len(table) - 1.5, color="white", linewidth=3)
    right.set_xticks(range(table.shape[1]), [f"tuned on\n{NAMES[name]}" for name in table], fontsize=8)
    right.set_yticks(range(len(table)), [NAMES.get(name, name) for name in table.index], fontsize=8)
    right.set_title(f"full tuning: change of each source; goal: S falls by {fall:g} or more", fontsize=9)
    right.grid(False)
    figure.colorbar(drawn, ax=right, label="points")
    return figure


def trade_off(data: pd.DataFrame) -> Figure:
    """S against T, a panel a target: seeds as clouds, means as large marks, the front as a gray line.

    data: of `plane`. To the upper right is better. Along a dotted line O = (S + T) / 2 is the same. The untouched base,
    whose T is far to the left, is a dashed line at its S; its T stands in the title.
    """
    targets = list(data["target"].unique())
    columns = min(2, len(targets))
    figure, axes = plt.subplots(ceil(len(targets) / columns), columns, squeeze=False,
                                figsize=(4.2 * columns, 3.2 * ceil(len(targets) / columns) + 1))
    for axis in axes.flat[len(targets):]:
        axis.set_axis_off()
    for axis, target in zip(axes.flat, targets):
        part = data[data["target"] == target].set_index("row")
        untouched, part = part.loc["zero-shot"], part.drop("zero-shot").reset_index()
        axis.axhline(untouched["S"], color="black", linestyle="--", linewidth=1, zorder=1)
        _equal_o(axis, part["T"], pd.concat([part["S"], pd.Series([untouched["S"]])]))
        for row, style in STYLE.items():
            points = part[part["row"] == row]
            seeds, mean = points[points["seed"] != MEAN], points[points["seed"] == MEAN]
            axis.plot(seeds["T"], seeds["S"], color=style["color"], marker=".", markersize=3, linestyle="")
            axis.plot(mean["T"], mean["S"], **{"markersize": 8} | style, linestyle="", markeredgecolor="white",
                      markeredgewidth=0.6)
        front = part[part["front"].fillna(False)].sort_values("T")
        axis.plot(front["T"], front["S"], color=GRAY, linewidth=1, drawstyle="steps-pre", zorder=1)
        axis.set(title=f"{NAMES[target]} (zero-shot: T = {untouched['T']:.0f})", xlabel="T: target, points",
                 ylabel="S: sources, points")
    line = Line2D([], [], color="black", linestyle="--", linewidth=1, label="S of zero-shot")
    legend(figure, [row for row in STYLE if row in set(data["row"]) and row != "zero-shot"], [line])
    return figure


def _equal_o(axis: Axes, t: pd.Series, s: pd.Series) -> None:
    (left, right), (low, high) = (t.min(), t.max()), (s.min(), s.max())
    pad_t, pad_s = 0.06 * (right - left) + 0.5, 0.08 * (high - low) + 0.5
    axis.set(xlim=(left - pad_t, right + pad_t), ylim=(low - pad_s, high + pad_s))
    for level in np.linspace(left + low, right + high, 6)[1:-1]:
        axis.axline((left, level - left), slope=-1, color=GRAY, linestyle=":", linewidth=0.6, alpha=0.6, zorder=0)


def legend(figure: Figure, rows: Sequence[str], more: Sequence[Line2D] = (), columns: int = 6) -> None:
    """Below the figure: the mark of each row, then `more`."""
    handles = [Line2D([], [], **STYLE[row] | {"markersize": 7}, linestyle="", label=row) for row in rows]
    figure.legend(handles=[*handles, *more], loc="outside lower center", ncols=columns, fontsize=8)


def forest(data: pd.DataFrame) -> Figure:
    """Paired differences: a column of panels a value, a row of panels a pair, a line a place.

    data: of `differences`. Small dots: seeds; bars: 95 % t intervals; the upright line is zero.
    """
    pairs, values, places = (list(dict.fromkeys(data[name])) for name in ("pair", "value", "place"))
    figure, axes = plt.subplots(len(pairs), len(values), squeeze=False, sharey=True, sharex="col",
                                figsize=(3.1 * len(values) + 1.4, len(pairs) * (0.28 * len(places) + 0.55) + 0.5))
    for line, pair in zip(axes, pairs):
        for axis, value in zip(line, values):
            axis.axvline(0, color=GRAY, linewidth=1)
            for y, place in enumerate(reversed(places)):
                _one(axis, y, data[(data["pair"] == pair) & (data["value"] == value) & (data["place"] == place)])
            axis.set_title(f"{IN_WORDS[value]}: {pair}", fontsize=9)
            axis.set_ylim(-0.6, len(places) - 0.4)
        line[0].set_yticks(range(len(places)), [NAMES.get(place, place) for place in reversed(places)], fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("difference, points")
    return figure


def _one(axis: Axes, y: float, part: pd.DataFrame) -> None:
    seeds = part[part["row"] != MEAN]
    axis.plot(seeds["score"], [y - 0.25] * len(seeds), ".", color=SKY, markersize=5)
    for mean in part[part["row"] == MEAN].itertuples():
        error = None if pd.isna(mean.low) else [[mean.score - mean.low], [mean.high - mean.score]]
        axis.errorbar(mean.score, y, xerr=error, color="black", marker="o", markersize=5, capsize=2, linestyle="")
