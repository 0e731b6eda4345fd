"""What an update rule with a mask does while it runs: shares, mask values and drift by tensor; which entries it chose.

`look` and `by_rank` take a rule in the middle of a run, between two steps, and change nothing; the drawings take what
they return.
"""
import re
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ...methods.selective.rule import MaskRule
from .plots import GRAY, GREEN, PINK

SELECTED, WHOLE, VALUE, DRIFT = "selected, %", "mask exactly 1, %", "mean mask of the selected", "drift from W0, %"
VALUES = (SELECTED, WHOLE, VALUE, DRIFT)
DASHES = {"attention": "-", "MLP": "--", "norms": ":", "projector": "-."}


@torch.no_grad()
def look(rule: MaskRule) -> pd.DataFrame:
    """A row a trained tensor: tensor (its name), part (see `part_of`), entries, and VALUES.

    drift: the length of W - W0 over that of W0; of a tensor that starts at zero it is not defined (NaN).
    """
    rows = []
    for tensor in rule.tensors:
        mask, start = rule.mask(tensor).float(), tensor.start()
        chosen = mask > 0
        drift = (tensor.weight - start).norm() / start.norm() if start.any() else torch.tensor(torch.nan)
        rows.append({"tensor": tensor.name, "part": part_of(tensor.name), "entries": mask.numel(),
                     SELECTED: 100 * chosen.float().mean().item(), WHOLE: 100 * (mask == 1).float().mean().item(),
                     VALUE: mask[chosen].mean().item(), DRIFT: 100 * drift.item()})
    return pd.DataFrame(rows)


def part_of(name: str) -> str:
    """The part of the model that a tensor lies in: "block 3, attention", "block 3, norms" or "projector"."""
    if (found := re.search(r"(?:language_model|text_model)\.layers\.(\d+)\.(.*)", name)) is None:
        return "projector"
    rest = found[2]
    return f"block {found[1]}, {'norms' if 'norm' in rest else 'attention' if 'attn' in rest else 'MLP'}"


@torch.no_grad()
def by_rank(rule: MaskRule, bins: int = 10) -> pd.DataFrame:
    """The share of selected entries, in percent, by the rank of |W0| and by that of |A| within their tensor.

    Columns: by ("|W0|" or "|A|"), bin (1: the smallest), selected. Only matrices count: vectors have too few entries.
    """
    counts = {name: torch.zeros(2, bins) for name in ("|W0|", "|A|")}  # selected, all
    for tensor in rule.tensors:
        if tensor.weight.ndim < 2:
            continue
        chosen = (rule.mask(tensor) > 0).flatten().float().cpu()
        for name, values in (("|W0|", tensor.start()), ("|A|", rule.accumulated(tensor))):
            order = values.abs().flatten().cpu().argsort()
            place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order)))
            where = place * bins // len(order)  # (entries,) 0 to bins - 1
            counts[name][0] += torch.bincount(where, chosen, bins)
            counts[name][1] += torch.bincount(where, minlength=bins)
    return pd.DataFrame([{"by": name, "bin": number, "selected": (100 * part[0] / part[1])[number - 1].item()}
                         for name, part in counts.items() for number in range(1, bins + 1)])


# ---- drawings --------------------------------------------------------------------------------------------------------

def matrices(steps: Mapping[str, Tensor]) -> Figure:
    """Small matrices beside each other, numbers written in; those with a value below zero get two colors."""
    figure, axes = plt.subplots(1, len(steps), figsize=(1.75 * len(steps), 2), squeeze=False)
    for axis, (title, values) in zip(axes.flat, steps.items()):
        signed, top = bool((values < 0).any()), values.abs().max().item() or 1.0
        low, high, colors = (-top, top, "PuOr") if signed else (0, 1, "cividis")
        axis.imshow(values.numpy(), vmin=low, vmax=high, cmap=colors)
        for (i, j), value in np.ndenumerate(values.numpy()):
            pale = abs(value) < 0.6 * top if signed else value > 0.5
            axis.text(j, i, f"{value:.{2 if top < 10 else 1}f}", ha="center", va="center", fontsize=7,
                      color="black" if pale else "white")
        axis.set(title=title, xticks=[], yticks=[])
        axis.grid(False)
    return figure


def trajectories(data: pd.DataFrame) -> Figure:
    """The four values of `look` over steps, a line a part of the model. data: step, part, and VALUES."""
    figure, axes = plt.subplots(1, len(VALUES), figsize=(9.6, 2.7))
    parts = sorted(data["part"].unique())
    for axis, value in zip(axes, VALUES):
        for part, color in zip(parts, plt.get_cmap("cividis")(np.linspace(0, 0.95, len(parts)))):
            line = data[data["part"] == part]
            axis.plot(line["step"], line[value], color=PINK if part == "projector" else color, label=part,
                      linestyle=DASHES[part.split(", ")[-1]])
        axis.set(title=value, xlabel="step")
        axis.title.set_fontsize(9)
    axes[0].axhspan(40, 60, color=GREEN, alpha=0.12, linewidth=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(parts), fontsize=8)
    return figure


def histogram(data: pd.DataFrame) -> Figure:
    """Share of selected entries by rank of |W0| and of |A|. data: of `by_rank`."""
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.8), sharey=True)
    for axis, (name, part) in zip(axes, data.groupby("by", sort=False)):
        axis.bar(part["bin"], part["selected"], color=GREEN, width=0.9)
        axis.axhline(50, color=GRAY, linestyle="--", linewidth=1)
        axis.set(xlabel=f"tenth of entries by {name}, smallest first", xticks=part["bin"])
    axes[0].set_ylabel("selected, %")
    return figure
