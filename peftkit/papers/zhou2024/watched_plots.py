"""What else tuning does (notebook 03c): rows for drawing, our side and the paper's in one shape, and the figures.

Rows hold the score of a seed, in points; `over_seeds` of `peftkit.papers.tidy` adds means with intervals.
"""
from collections.abc import Mapping, Sequence
from itertools import product
from math import inf, nan

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from ...data.scenes import Scenes
from ...figures import METHOD_STYLE
from ..cells import Cells
from ..claims import UNRESOLVED
from ..tidy import MEAN
from .plots import GRAY, LABELS, LINES, METHODS, NAMES
from .records import PAST
from .tables import UNTRAINED

ROWS = ["side", "method", "task", "setting", "seed", "score"]
INVENTED, RECALL, NAMED = "captions that invent, %", "things recalled, %", "things named per caption"  # of `spoken`
SHARES = (0.01, 0.1, 0.3, 1, 3, 10, 30)  # percent, ticks
DODGE = dict(zip(METHODS, np.linspace(-0.27, 0.27, len(METHODS))))


def rows_of(sides: Mapping[str, Cells], study: str, tasks: Sequence[str], settings: Sequence[str],
            model: str = "llava_1.5_7b") -> pd.DataFrame:
    """What the claims see of a study, connector tuned: columns `ROWS`, a row a seed, scores in points.

    sides: name -> cells, such as {"ours": our_cells(frame), "paper": printed_cells()}. A cell without runs has no row.
    """
    found = [(side, method, task, setting, str(seed), score)
             for (side, cells), method, task, setting in product(sides.items(), METHODS, tasks, settings)
             for seed, score in cells.mean(study, model, method, "tuned", task, setting).items()]
    return pd.DataFrame(found, columns=ROWS).astype({"score": float})


def from_the_mean(rows: pd.DataFrame, by: Sequence[str] = ("side", "task")) -> pd.DataFrame:
    """Figure 4: every method's score minus the mean of the four methods in the same group and seed."""
    scores = rows.groupby([*by, "method", "seed"], sort=False, as_index=False)["score"].mean()
    return scores.assign(score=scores["score"] - scores.groupby([*by, "seed"])["score"].transform("mean"))


def lowest(looks: pd.DataFrame) -> pd.DataFrame:
    """Of every long run, the epoch with the lowest loss (first of equals): task, method, seed, epoch, loss, end, and
    late, True where fewer than four epochs are left after it."""
    runs = looks.groupby(["task", "method", "seed"], sort=False)
    best = looks.loc[runs["loss"].idxmin(), ["task", "method", "seed", "epoch", "loss"]].reset_index(drop=True)
    ends = runs[["epoch", "loss"]].last().rename(columns={"epoch": "epochs", "loss": "end"}).reset_index()
    best = best.merge(ends)
    return best.assign(late=best.pop("epochs") - best["epoch"] < PAST)


def spoken(looks: pd.DataFrame, present: float) -> pd.DataFrame:
    """How much captions say and how much of it is wrong: columns method, task, seed, measure, score.

    looks: of `records.looks`, rows with captions; present: things in a picture in the mean. Distinct things named per
    caption, right or wrong, follow from the recall and the share of wrong ones; unknown where all are wrong.
    """
    named = looks["recall"] * present / (1 - looks["mentions"]).replace(0, nan)
    said = looks[["method", "task", "seed"]].assign(**{
        INVENTED: 100 * looks["hallucinated"], RECALL: 100 * looks["recall"], NAMED: named})
    return said.melt(["method", "task", "seed"], [INVENTED, RECALL, NAMED], "measure", "score")


def seeds_to_resolve(ledger: pd.DataFrame) -> pd.Series:
    """Of each claim that our runs leave unresolved, the number of seeds that would resolve it, infinite if none would;
    index id. Empty where the ledger does not say it."""
    unresolved = ledger[ledger["verdict_ours"] == UNRESOLVED].set_index("id")["note"].astype(str)
    found = unresolved.str.extract(r"(?:about (\d+)|(no number of)) seeds would resolve it")
    return found[0].astype(float).mask(found[1].notna(), inf)


def label(word: str) -> str:
    """A task, a pair "source>target" or a setting in few letters."""
    parts = [LABELS.get(part, part) for part in str(word).split(">")]
    return "→".join(parts).removeprefix("epoch ").replace("tuned_on ", "after ")


# ── figures ──

def panels(data: pd.DataFrame, x: str, *, columns: str = "side", rows: str | None = None,
           lines: pd.DataFrame | None = None, ylabel: str = "points", connect: bool = False,
           share: bool = False, zero: bool = False, rotation: int = 0, size=(3.6, 2.6)) -> Figure:
    """A panel for every value of `columns` (and of `rows`), in it the four methods at every level of `x`.

    data: of `over_seeds`: marks are means with their intervals, small dots single seeds. lines: rows with a score of
    method "none" or "language"; where they have a value in column `x` they are drawn at that level, else across the
    panel. connect: join the means of a method. share: the same scale in all panels. zero: draw the line at zero.
    """
    across, down = list(data[columns].unique()), list(data[rows].unique()) if rows else [None]
    figure, axes = plt.subplots(max(1, len(down)), max(1, len(across)), squeeze=False, sharey=share, figsize=(
        size[0] * max(2, len(across)), size[1] * max(1, len(down)) + 0.6))
    for (i, row), (j, column) in product(enumerate(down), enumerate(across)):
        def here(frame):
            return frame[(frame[columns] == column) & ((frame[rows] == row) if rows else True)]

        axis, part = axes[i, j], here(data)
        levels = list(part[x].unique())
        _marks(axis, part, x, levels, connect)
        if lines is not None:
            _levels(axis, here(lines), x, levels)
        if zero:
            axis.axhline(0, color=GRAY, linewidth=0.8)
        axis.set_xticks(range(len(levels)), [label(level) for level in levels], fontsize=8, rotation=rotation)
        axis.set_title(label(column) if i == 0 else "", fontsize=10)
        axis.set_ylabel((row or ylabel) if j == 0 else "", fontsize=9)
    _legend(figure, [] if lines is None else list(lines["method"].unique()))
    return figure


def _marks(axis: Axes, part: pd.DataFrame, x: str, levels: list, connect: bool) -> None:
    for method, shift in DODGE.items():
        own, style = part[part["method"] == method], METHOD_STYLE[method]
        means, seeds = own[own["row"] == MEAN], own[own["row"] != MEAN]
        if seeds.groupby(x).size().max() > 1:
            axis.plot([levels.index(level) + shift + 0.06 for level in seeds[x]], seeds["score"], ".", markersize=3,
                      color=style["color"], alpha=0.5)
        places = [levels.index(level) + shift for level in means[x]]
        error = [means["score"] - means["low"], means["high"] - means["score"]]
        axis.errorbar(places, means["score"], yerr=error, linestyle="-" if connect else "", linewidth=1, markersize=5,
                      capsize=2, elinewidth=1.1, **style)


def _levels(axis: Axes, lines: pd.DataFrame, x: str, levels: list) -> None:
    for row in lines.itertuples():
        level = getattr(row, x, None)
        if level in levels:
            place = levels.index(level)
            axis.plot([place - 0.42, place + 0.42], [row.score] * 2, **LINES[row.method])
        elif pd.isna(level):
            axis.axhline(row.score, **LINES[row.method])


def _legend(figure: Figure, lines: Sequence[str] = ()) -> None:
    handles = [Line2D([], [], linestyle="", markersize=5, **METHOD_STYLE[method], label=NAMES[method])
               for method in METHODS]
    handles += [Line2D([], [], **LINES[method], label=NAMES[method]) for method in lines]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)


def probe_picture(scenes: Scenes, probed: pd.DataFrame) -> Figure:
    """The first of `scenes`, and beside it the questions about it: columns probe, question, answer."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.4), width_ratios=(1, 2.2))
    left.imshow(scenes.draw()[0], interpolation="nearest")
    listing = "\n".join(f"{row.probe:17} {row.question:31} {row.answer}" for row in probed.itertuples())
    right.text(0, 0.5, listing, family="monospace", va="center", fontsize=8)
    for axis in (left, right):
        axis.set_axis_off()
    return figure


def losses(data: pd.DataFrame, minima: pd.DataFrame, untouched: Mapping[str, float]) -> Figure:
    """Loss on held-out examples by epoch, a column a task; below, the epoch of each run's minimum.

    data: of `over_seeds` by task, method, epoch. minima: of `lowest`. untouched: task -> loss before training. In the
    gray field fewer than four epochs are left.
    """
    tasks = list(data["task"].unique())
    figure, axes = plt.subplots(2, len(tasks), figsize=(3.1 * max(2, len(tasks)), 4.6), squeeze=False, sharex=True,
                                height_ratios=(3, 1.3))
    for (top, bottom), task in zip(axes.T, tasks):
        for place, method in enumerate(METHODS):
            means = data[(data["task"] == task) & (data["method"] == method) & (data["row"] == MEAN)]
            color = METHOD_STYLE[method]["color"]
            top.plot(means["epoch"], means["score"], markersize=4, linewidth=1.2, **METHOD_STYLE[method])
            top.fill_between(means["epoch"], means["low"], means["high"], color=color, alpha=0.15, linewidth=0)
            best = minima[(minima["task"] == task) & (minima["method"] == method)]
            shifts = np.linspace(-0.25, 0.25, len(best)) if len(best) > 1 else np.zeros(len(best))
            bottom.plot(best["epoch"], place + shifts, linestyle="", markersize=4, **METHOD_STYLE[method])
        top.axhline(untouched[task], **LINES[UNTRAINED])
        top.set(yscale="log", title=label(task))
        top.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_locator=NullLocator())
        last = data["epoch"].max()
        bottom.axvspan(last - PAST + 0.5, last + 0.5, color="#DDDDDD", zorder=0)
        bottom.set(xlabel="epoch", yticks=range(len(METHODS)), yticklabels=[NAMES[method] for method in METHODS],
                   ylim=(len(METHODS) - 0.5, -0.5))
        bottom.tick_params(axis="y", labelsize=8, labelleft=task == tasks[0])
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].set_ylabel("loss (nats a token)")
    axes[1, 0].set_ylabel("minimum")
    _legend(figure, [UNTRAINED])
    return figure


def score_and_share(data: pd.DataFrame, lines: pd.DataFrame) -> Figure:
    """Mean score against trainable share (log scale), a panel a side; connector frozen hollow, tuned filled.

    data: side, method, connector, share (percent), score, low, high. lines: side, method ("none", "language"), score.
    """
    sides = list(data["side"].unique())
    figure, axes = plt.subplots(1, len(sides), figsize=(2.2 * max(2, len(sides)), 3.4), squeeze=False)
    for axis, side in zip(axes[0], sides):
        for row in data[data["side"] == side].itertuples():
            style = METHOD_STYLE[row.method] | ({"markerfacecolor": "white"} if row.connector == "frozen" else {})
            axis.errorbar(row.share, row.score, yerr=[[row.score - row.low], [row.high - row.score]], linestyle="",
                          capsize=2, **style)
        for row in lines[lines["side"] == side].itertuples():
            axis.axhline(row.score, **LINES[row.method])
        axis.set(xscale="log", xlabel="trainable, %")
        axis.set_title(side, fontsize=9)
        low, high = axis.get_xlim()
        axis.set_xticks([share for share in SHARES if low <= share <= high])
        axis.xaxis.set(major_formatter="{x:g}", minor_locator=NullLocator())
    axes[0, 0].set_ylabel("mean score, points")
    _legend(figure, list(lines["method"].unique()))
    return figure


def operations(implied: pd.DataFrame, counted: pd.DataFrame) -> Figure:
    """Left: tokens for which each training cost of Table 15 was printed; right: a real step over the formula's.

    implied: of `efficiency.implied_tokens`; counted: of `efficiency.counted_flops`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), width_ratios=(2, 1))
    settings = list(dict.fromkeys(zip(implied["model"], implied["connector"])))
    for row in implied.itertuples():
        left.plot(settings.index((row.model, row.connector)) + DODGE[row.method], row.tokens / 1000, linestyle="",
                  **METHOD_STYLE[row.method])
    left.set_xticks(range(len(settings)), [f"{model[-3:].strip('_').upper()}\n{word}" for model, word in settings])
    left.set(ylabel="thousand tokens", title="paper: tokens implied", ylim=(0, 1.1 * implied["tokens"].max() / 1000))
    for place, row in enumerate(counted.itertuples()):
        right.plot(place, row.ratio, linestyle="", **METHOD_STYLE[row.method])
    right.axhline(1, color=GRAY, linewidth=0.8)
    right.set_xticks(range(len(counted)), [NAMES[method] for method in counted["method"]], fontsize=8)
    right.set(title="ours: counted / formula", ylim=(0, 1.1 * counted["ratio"].max()))
    _legend(figure)
    return figure
