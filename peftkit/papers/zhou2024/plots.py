"""The three drawings of the main study. Each takes tidy data and returns the figure, for `peftkit.figures.save`."""
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from ...figures import METHOD_STYLE
from .differences import METHODS, NAMES
from .study import SEEN, UNSEEN
from .tables import COUNTERPARTS, MODELS, UNTRAINED

LABELS = {"scienceqa": "SQA", "vizwiz": "VizWiz", "iconqa_txt": "IQ-txt", "iconqa_blank": "IQ-blank",
          "flickr30k": "Flickr", "okvqa": "OKVQA", "ocrvqa": "OCRVQA", "vqav2": "VQAv2", "U": "U", "S": "S",
          "Avg": "Avg"}
ARMS = [(UNTRAINED, UNTRAINED), *((method, connector) for method in METHODS for connector in ("frozen", "tuned"))]
VERDICT_STYLE = {"supported": {"color": "#009E73", "marker": "o"}, "contradicted": {"color": "#D55E00", "marker": "X"},
                 "unresolved": {"color": "#777777", "marker": "s"}}


def table_heatmap(table: pd.DataFrame) -> Figure:
    """Our table and, to its right, the paper's for the model that our base stands for; one line of panels a base.

    table: index (source, method, connector), columns tasks, U, S, Avg in [0, 1]; shown in points, tasks rounded to
    whole ones (`beside` gives the decimals).
    """
    bases = [base for base in COUNTERPARTS if base in table.index.get_level_values("source")]
    figure, axes = plt.subplots(len(bases), 2, figsize=(10, 2.2 * len(bases) + 0.4), squeeze=False, sharey=True,
                                sharex=True)
    for line, base in zip(axes, bases):
        for axis, source, name in zip(line, (base, COUNTERPARTS[base]), (base, MODELS[COUNTERPARTS[base]])):
            shown = _heat(axis, 100 * table.loc[source].reindex(ARMS)[[c for c in LABELS if c in table.columns]])
            axis.set_title(f"ours: {name}" if source == base else f"paper: {name}")
    figure.colorbar(shown, ax=axes, shrink=0.6, label="points")
    return figure


def _heat(axis: Axes, points: pd.DataFrame) -> AxesImage:
    shown = axis.imshow(points.astype(float), vmin=0, vmax=100, cmap=plt.get_cmap("cividis", 20), aspect="auto")
    for column, name in enumerate(points):
        for row, value in enumerate(points[name]):
            if pd.notna(value):
                text = f"{value:.1f}" if name in ("U", "S", "Avg") else f"{value:.0f}"
                axis.text(column, row, text, ha="center", va="center", fontsize=7,
                          color="black" if value > 50 else "white")
    arms = [f"{NAMES[method]} {connector}" if method in NAMES else "zero-shot" for method, connector in points.index]
    axis.set_yticks(range(len(arms)), arms, fontsize=8)
    axis.set_xticks(range(points.shape[1]), [LABELS[column] for column in points], fontsize=7, rotation=45)
    axis.grid(False)
    for edge in (sum(c in UNSEEN for c in points), sum(c in UNSEEN + SEEN for c in points)):
        axis.axvline(edge - 0.5, color="white", linewidth=3)
    return shown


def figure2(data: pd.DataFrame) -> Figure:
    """Unseen (top) and seen (bottom) means of every method, connector frozen (hollow) and tuned (filled).

    data: of `figure2_data`. Small dots are single seeds (for the paper: single models), bars are 95 % t intervals, the
    dashed line is the untouched base.
    """
    sources = list(data["source"].unique())
    figure, axes = plt.subplots(2, len(sources), figsize=(2.5 * len(sources) + 0.8, 5.4), squeeze=False, sharex=True,
                                sharey="row")
    for column, source in zip(axes.T, sources):
        for axis, group in zip(column, ("unseen", "seen")):
            _means(axis, data[(data["source"] == source) & (data["group"] == group)])
        column[0].set_title("paper, mean of 4 models" if source == "paper" else source)
    axes[0, 0].set_ylabel("mean score, unseen tasks")
    axes[1, 0].set_ylabel("mean score, seen tasks")
    gray = "#555555"
    handles = [Line2D([], [], color=gray, marker="o", linestyle="", markerfacecolor=face, label=f"connector {word}")
               for word, face in (("frozen", "white"), ("tuned", gray))]
    handles.append(Line2D([], [], color=gray, linestyle="--", label="zero-shot"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _means(axis: Axes, data: pd.DataFrame) -> None:
    for place, method in enumerate(METHODS):
        for shift, connector in ((-0.18, "frozen"), (0.18, "tuned")):
            part = data[(data["method"] == method) & (data["connector"] == connector)]
            mean, dots = part[part["row"] == "mean"].iloc[0], part[part["row"] != "mean"]
            style = METHOD_STYLE[method] | ({"markerfacecolor": "white"} if connector == "frozen" else {})
            axis.plot([place + shift + 0.11] * len(dots), dots["score"], ".", color=style["color"], alpha=0.5,
                      markersize=4)
            axis.errorbar(place + shift, mean["score"], linestyle="", capsize=2, elinewidth=1.2,
                          yerr=[[mean["score"] - mean["low"]], [mean["high"] - mean["score"]]], **style)
    for score in data.loc[data["method"] == UNTRAINED, "score"]:
        axis.axhline(score, color="#555555", linestyle="--", linewidth=1)
    axis.set_xticks(range(len(METHODS)), [NAMES[method] for method in METHODS])


def forest(table: pd.DataFrame) -> Figure:
    """Every difference with its interval, one panel a base; the paper's printed difference as a black diamond.

    table: of `differences`; shown in points.
    """
    bases, lines = list(table["base"].unique()), list(table["difference"].unique())[::-1]
    claims = dict(zip(table["difference"], table["claim"]))
    figure, axes = plt.subplots(1, len(bases), figsize=(2.9 * len(bases) + 2.6, 3.8), squeeze=False, sharey=True,
                                sharex=True)
    for axis, base in zip(axes[0], bases):
        axis.axvline(0, color="black", linewidth=1)
        for row in table[table["base"] == base].itertuples():
            y = lines.index(row.difference)
            error = [[100 * (row.ours - row.low)], [100 * (row.high - row.ours)]]
            axis.errorbar(100 * row.ours, y + 0.12, xerr=error, linestyle="", capsize=2, **VERDICT_STYLE[row.verdict])
            axis.plot(100 * row.printed, y - 0.2, "d", color="black", markersize=4)
        axis.set_title(f"{base}\n(paper: {MODELS[COUNTERPARTS[base]]})", fontsize=9)
        axis.set_xlabel("points")
    axes[0, 0].set_yticks(range(len(lines)), [f"{claims[line]}  {line}" for line in lines], fontsize=8)
    handles = [Line2D([], [], linestyle="", label=f"ours: {name}", **style) for name, style in VERDICT_STYLE.items()]
    handles.append(Line2D([], [], linestyle="", color="black", marker="d", markersize=4, label="paper, as printed"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4 if len(bases) > 1 else 2, fontsize=8)
    return figure
