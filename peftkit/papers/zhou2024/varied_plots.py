"""What the paper varies, drawn: curves over levels, changes with intervals, two rankings. Data: of `both_sides`."""
from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...figures import METHOD_STYLE
from .both_sides import CONNECTOR, PRINTED, STEPS, VOCABULARY
from .plots import LINES, METHODS, NAMES
from .rates import WORDS

SIDES = ("paper", "ours")
BLACK = {"color": "black", "marker": "d", "markersize": 5}
SERIES = {  # style of what a forest compares
    "ours": {"color": "#0072B2", "marker": "o"}, "paper": BLACK, PRINTED: BLACK,
    "paper, misprint corrected": BLACK | {"markerfacecolor": "white"},
    CONNECTOR: {"color": "#009E73", "marker": "o"}, VOCABULARY[0]: {"color": "#D55E00", "marker": "s"},
    VOCABULARY[1]: {"color": "#E69F00", "marker": "^"},
    STEPS[0]: {"color": "#0072B2", "marker": "o"}, STEPS[1]: {"color": "#E69F00", "marker": "s"}}
RINGS = {word: {"marker": marker, "markersize": 12, "markerfacecolor": "none", "markeredgecolor": "black"}
         for word, marker in zip(WORDS, "os")}


def curves(data: pd.DataFrame, *, xlabel: str, xscale: str = "linear", yscale: str = "linear",
           ylabel: str = "score, points", ticks: Mapping[float, str] | None = None, line: str = "-") -> Figure:
    """Score against level, a line a method with 95 % intervals; a row of panels a group, the paper left, ours right.

    data: of `levels`, `ranked` or `spreads`. Dashed line: untouched base; dotted line with its band: full fine-tuning.
    Points that have a `choice` (`marked`) get a ring or a square. ticks: level -> its words. line: "" for
    levels without an order.
    """
    groups = list(data["group"].unique())
    figure, axes = plt.subplots(len(groups), 2, figsize=(8.4, 2.5 * len(groups) + 0.7), squeeze=False)
    for row, group in zip(axes, groups):
        for axis, side in zip(row, SIDES):
            part = data[(data["side"] == side) & (data["group"] == group)]
            _curves(axis, part, xscale == "log", line)
            axis.set(title=f"{side}: {group}", xscale=xscale)
            if yscale == "symlog":  # straight near zero, which is a possible standard deviation
                axis.set_yscale("symlog", linthresh=0.1)
                axis.set_ylim(bottom=-0.02)
            words = ticks or {level: f"{level:g}" for level in sorted(part["level"].dropna().unique())}
            axis.set_xticks(list(words), list(words.values()), fontsize=8, rotation=0 if ticks else 25)
            axis.set_xticks([], minor=True)
        row[0].set_ylabel(ylabel)
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    shown = [method for method in METHODS if method in set(data["method"])]
    handles = [Line2D([], [], **METHOD_STYLE[method], label=NAMES[method]) for method in shown]
    handles += [Line2D([], [], **LINES[name], label=NAMES[name]) for name in LINES if name in set(data["method"])]
    if "choice" in data:
        handles += [Line2D([], [], linestyle="", label=f"{word} rate", **ring) for word, ring in RINGS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _curves(axis: Axes, data: pd.DataFrame, log: bool, line: str) -> None:
    for place, method in enumerate(METHODS):
        part = data[data["method"] == method].sort_values("level")
        x = part["level"] * 1.03 ** (place - 1.5) if log else part["level"] + 0.05 * (place - 1.5)
        error = [part["score"] - part["low"], part["high"] - part["score"]]
        axis.errorbar(x, part["score"], yerr=error, capsize=2, elinewidth=1, linestyle=line, **METHOD_STYLE[method])
        for word, ring in RINGS.items() if "choice" in part else ():
            marked = part["choice"].str.contains(word)
            axis.plot(x[marked], part["score"][marked], linestyle="", **ring)
    for row in data[data["method"].isin(LINES)].itertuples():
        axis.axhline(row.score, **LINES[row.method])
        if row.low == row.low:
            axis.axhspan(row.low, row.high, color=LINES[row.method]["color"], alpha=0.15, linewidth=0)


def forest(data: pd.DataFrame, *, xlabel: str, bound: float = 0.0, band: float | None = None) -> Figure:
    """Changes with their intervals: columns panel, line, series (`SERIES`), score, low, high; no interval is fine.

    bound: where the vertical line stands. band: the field ± so much around it counts as no change.
    """
    panels, lines = list(data["panel"].unique()), list(data["line"].unique())[::-1]
    series = [name for name in SERIES if name in set(data["series"])]
    figure, axes = plt.subplots(1, len(panels), figsize=(9.0, 0.11 * len(lines) * (len(series) + 1.5) + 1.5),
                                squeeze=False, sharey=True)
    for axis, panel in zip(axes[0], panels):
        axis.axvline(bound, color="black", linewidth=1)
        if band:
            axis.axvspan(bound - band, bound + band, color="#CFE8DF", zorder=0.5)
        for row in data[data["panel"] == panel].itertuples():
            y = lines.index(row.line) - 0.7 * ((series.index(row.series) + 0.5) / len(series) - 0.5)
            error = None if row.low != row.low else [[row.score - row.low], [row.high - row.score]]
            axis.errorbar(row.score, y, xerr=error, linestyle="", capsize=2, **SERIES[row.series])
        axis.set(title=panel, xlabel=xlabel, ylim=(-0.6, len(lines) - 0.4))
    axes[0, 0].set_yticks(range(len(lines)), lines)
    handles = [Line2D([], [], linestyle="", label=name, **SERIES[name]) for name in series]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    return figure


def slopes(data: pd.DataFrame) -> Figure:
    """Two rankings side by side: at the paper's rates and at each method's own best; a line a method, a row a side.

    data: `summarize` of `rates.choices`. Crossing lines are pairs of methods that change order.
    """
    groups, sides = list(data["group"].unique()), [side for side in SIDES if side in set(data["side"])]
    figure, axes = plt.subplots(len(sides), len(groups), figsize=(3.0 * len(groups), 2.6 * len(sides) + 0.5),
                                squeeze=False)
    for line, side in zip(axes, sides):
        for axis, group in zip(line, groups):
            part = data[(data["side"] == side) & (data["group"] == group)]
            for place, method in enumerate(METHODS):
                row = part[part["method"] == method]
                x = [WORDS.index(word) + 0.03 * (place - 1.5) for word in row["rates"]]
                error = [row["score"] - row["low"], row["high"] - row["score"]]
                axis.errorbar(x, row["score"], yerr=error, capsize=2, elinewidth=1, **METHOD_STYLE[method])
            axis.set_xticks(range(len(WORDS)), WORDS)
            axis.set(title=f"{side}: {group}", xlim=(-0.25, 1.25))
        line[0].set_ylabel("score, points")
    handles = [Line2D([], [], **METHOD_STYLE[method], label=NAMES[method]) for method in METHODS]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    return figure
