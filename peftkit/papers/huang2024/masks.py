"""What an update rule with a mask does while it runs: shares, mask values and drift by tensor; which entries it chose.

Both take a rule in the middle of a run, between two steps, and change nothing.
"""
import re

import pandas as pd
import torch

from ...methods.selective.rule import MaskRule

SELECTED, WHOLE, VALUE, DRIFT = "selected, %", "mask exactly 1, %", "mean mask of the selected", "drift from W0, %"
VALUES = (SELECTED, WHOLE, VALUE, DRIFT)


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
    if (found := re.search(r"\.layers\.(\d+)\.(.*)", name)) is None:
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
        chosen = (rule.mask(tensor) > 0).flatten().float()
        for name, values in (("|W0|", tensor.start()), ("|A|", rule.accumulated(tensor))):
            order = values.abs().flatten().argsort()
            place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order)))
            where = place * bins // len(order)  # (entries,) 0 to bins - 1
            counts[name][0] += torch.bincount(where, chosen, bins)
            counts[name][1] += torch.bincount(where, minlength=bins)
    return pd.DataFrame([{"by": name, "bin": number, "selected": (100 * part[0] / part[1])[number - 1].item()}
                         for name, part in counts.items() for number in range(1, bins + 1)])
