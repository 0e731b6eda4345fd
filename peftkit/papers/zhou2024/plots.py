"""Main table, main figure, and verdicts on claims. Each takes tidy data and returns the figure, for `figures.save`."""
import re
from collections.abc import Sequence
from math import inf, nan
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from ...figures import METHOD_STYLE
from ..claims import CONTRADICTED, NOT_PRINTED, NOT_TESTABLE, RUNS_MISSING, SUPPORTED, UNRESOLVED
from .study import FULL, SEEN, SIZES, UNSEEN
from .tables import COUNTERPARTS, MODELS, UNTRAINED

METHODS = tuple(SIZES)
NAMES = {"lora": "LoRA", "adapter": "Adapter", "ia3": "IA3", "prefix-peft": "Prefix", "language": "full fine-tuning",
         UNTRAINED: "zero-shot"}
LABELS = {"scienceqa": "SQA", "vizwiz": "VizWiz", "iconqa_txt": "IQ-txt", "iconqa_blank": "IQ-blank",
          "flickr30k": "Flickr", "okvqa": "OKVQA", "ocrvqa": "OCRVQA", "vqav2": "VQAv2", "U": "U", "S": "S",
          "Avg": "Avg"}
ARMS = [(UNTRAINED, UNTRAINED), *((method, "tuned") for method in FULL),
        *((method, connector) for method in METHODS for connector in ("frozen", "tuned"))]
GRAY = "#555555"
VERDICT_STYLE = {SUPPORTED: {"color": "#007A5A", "marker": "o"}, CONTRADICTED: {"color": "#C04A00", "marker": "X"},
                 UNRESOLVED: {"color": GRAY, "marker": "s"}, NOT_TESTABLE: {"color": GRAY},
                 RUNS_MISSING: {"color": GRAY}, NOT_PRINTED: {"color": GRAY}}
GLYPHS = {SUPPORTED: "●", CONTRADICTED: "✖", UNRESOLVED: "■", NOT_TESTABLE: "–", RUNS_MISSING: "?", NOT_PRINTED: "○"}
LINES = {UNTRAINED: {"color": GRAY, "linestyle": "--", "linewidth": 1},
         "language": {"color": "#000000", "linestyle": ":", "linewidth": 1.8}}
SIDES = {"paper": 0.02, "ours": 0.48}  # where their words stand


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
    arms = [f"{NAMES[method]} {connector * (method in METHODS)}".strip() for method, connector in points.index]
    axis.set_yticks(range(len(arms)), arms, fontsize=8)
    axis.set_xticks(range(points.shape[1]), [LABELS[column] for column in points], fontsize=7, rotation=45)
    axis.grid(False)
    for edge in (sum(c in UNSEEN for c in points), sum(c in UNSEEN + SEEN for c in points)):
        axis.axvline(edge - 0.5, color="white", linewidth=3)
    return shown


def figure2(data: pd.DataFrame) -> Figure:
    """Unseen (top) and seen (bottom) means of every method, connector frozen (hollow) and tuned (filled).

    data: of `figure2_data`. Small dots are single seeds (for the paper: single models), bars are 95 % t intervals. The
    dashed line is the untouched base, the dotted line full fine-tuning with its interval as a band. In the lower line
    the paper's panel starts at another level, at the same scale.
    """
    sources = list(data["source"].unique())
    figure, axes = plt.subplots(2, len(sources), figsize=(2.5 * len(sources) + 0.8, 5.4), squeeze=False, sharex=True)
    for column, source in zip(axes.T, sources):
        for axis, group in zip(column, ("unseen", "seen")):
            _means(axis, data[(data["source"] == source) & (data["group"] == group)])
        column[0].set_title("paper, mean of 4 models" if source == "paper" else source)
    ours = [source != "paper" for source in sources]
    for line, shared in ((axes[0], [True] * len(sources)), (axes[1], ours)):
        _share_scale(line, shared)
    axes[0, 0].set_ylabel("mean score, unseen tasks")
    axes[1, 0].set_ylabel("mean score, seen tasks")
    handles = [Line2D([], [], color=GRAY, marker="o", linestyle="", markerfacecolor=face, label=f"connector {word}")
               for word, face in (("frozen", "white"), ("tuned", GRAY))]
    handles += [Line2D([], [], **style, label=NAMES[method]) for method, style in LINES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4 if len(sources) > 2 else 2)
    return figure


def _share_scale(line: Sequence[Axes], shared: Sequence[bool]) -> None:
    """The same limits where shared, elsewhere limits of the same height below the highest data."""
    limits = np.array([axis.get_ylim() for axis in line])  # (panels, 2)
    together = limits[np.array(shared)]
    limits[np.array(shared)] = together[:, 0].min(), together[:, 1].max()
    height = np.ptp(limits, axis=1).max()
    for axis, high in zip(line, limits[:, 1]):
        axis.set_ylim(high - height, high)
    for axis, same in zip(line[1:], shared[1:]):
        axis.tick_params(labelleft=not same)


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
    for row in data[data["method"].isin(LINES) & (data["row"] == "mean")].itertuples():
        axis.axhline(row.score, **LINES[row.method])
        axis.axhspan(row.low, row.high, color=LINES[row.method]["color"], alpha=0.15, linewidth=0)
    axis.set_xticks(range(len(METHODS)), [NAMES[method] for method in METHODS])


def verdicts(ledger: pd.DataFrame) -> Figure:
    """One line a claim: its sentence, our effect with its 95 % interval, and two verdicts, on the paper and on us.

    ledger: of `peftkit.claims`, or some of its rows; one panel a unit, since points and percent do not mix. The green
    field is the range that the sentence claims, ending at its bound. A claim without an effect has words only. Where
    no number of the paper is known, there is only our side.
    """
    sides = {"ours": 0.02} if (ledger["verdict_paper"] == NOT_PRINTED).all() else SIDES
    units = list(ledger["unit"].unique())
    counts = [(ledger["unit"] == unit).sum() for unit in units]
    figure, axes = plt.subplots(
        len(units), 3, figsize=(10, 0.36 * len(ledger) + 0.6 * len(units) + 0.3), squeeze=False,
        height_ratios=[count + 0.4 for count in counts], width_ratios=(3.9, 3.8, 2.3))
    for (left, middle, right), unit in zip(axes, units):
        rows = ledger[ledger["unit"] == unit].iloc[::-1]
        _sentences(left, rows)
        _effects(middle, rows)
        _words(right, rows, sides)
        middle.set_xlabel(f"effect, {unit}", fontsize=8)
        for axis in (left, middle, right):
            axis.set_ylim(-0.6, len(rows) - 0.4)
    axes[0, 0].set_title(" ", fontsize=9)  # room for the line that the next ones write
    for side, x in sides.items():
        axes[0, 2].text(x, 1.0, side, transform=axes[0, 2].transAxes, va="bottom", fontsize=9, fontweight="bold")
    return figure


def _sentences(axis: Axes, rows: pd.DataFrame) -> None:
    axis.axis("off")
    for y, row in enumerate(rows.itertuples()):
        axis.text(0, y, row.id, va="center", fontsize=8, fontweight="bold")
        axis.text(0.22, y, fill(row.claim, 54), va="center", fontsize=7)


def _effects(axis: Axes, rows: pd.DataFrame) -> None:
    ranges = [claimed_range(row.note) if pd.notna(row.effect) else (nan, nan) for row in rows.itertuples()]
    places = np.concatenate([rows[["effect", "low", "high"]].to_numpy(dtype=float).ravel(), np.ravel(ranges)])
    places = places[np.isfinite(places)]
    if not len(places):
        axis.set(xticks=[], yticks=[])
        return
    pad = 0.06 * (np.ptp(places) or 1.0)
    left, right = places.min() - pad, places.max() + pad
    for y, (row, bounds) in enumerate(zip(rows.itertuples(), ranges)):
        start, end = np.clip(bounds, left, right)
        axis.barh(y, end - start, left=start, height=0.7, color="#CFE8DF", zorder=0.5)
        axis.vlines([bound for bound in bounds if np.isfinite(bound)], y - 0.35, y + 0.35, color=GRAY)
        if pd.notna(row.effect):
            error = None if pd.isna(row.low) else [[row.effect - row.low], [row.high - row.effect]]
            axis.errorbar(row.effect, y, xerr=error, linestyle="", capsize=2, **VERDICT_STYLE[row.verdict_ours])
    axis.set(xlim=(left, right), yticks=[])
    axis.locator_params(axis="x", nbins=5)
    axis.tick_params(labelsize=8)


def _words(axis: Axes, rows: pd.DataFrame, sides: dict[str, float]) -> None:
    axis.axis("off")
    for y, row in enumerate(rows.itertuples()):
        for side, x in sides.items():
            word = getattr(row, f"verdict_{side}")
            axis.text(x, y, f"{GLYPHS[word]} {word}", va="center", fontsize=8, color=VERDICT_STYLE[word]["color"])


def claimed_range(note: str) -> tuple[float, float]:
    """The open range in which a claim says that our effect lies, as the ledger's note tells it."""
    found = re.search(r" > (-?[\d.]*\d)| in \((-?[\d.]+), (-?[\d.]+)\)", note.split("ours: ")[-1].split(". ")[0])
    if found is None:
        return 0.0, inf
    above, low, high = found.groups()
    return (float(above), inf) if above else (float(low), float(high))
