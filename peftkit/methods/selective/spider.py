"""SPIDER: keep a weight at its pre-trained value unless tuning finds it more important than pre-training did.

Huang 2024, Eq. 2c, 4, 6, 8, as their released code computes them (facts 1.1), a tensor W at a time:

    R(X) = sigmoid((|X| - mean |X|) / std |X|)       importance of each entry, std unbiased
    I = R(W0);   A_t = A_{t-1} + g_t;   G = R(A_t)
    r = G / (I + G) where I < G, else 0;   M = min(1, r / mean of the nonzero r)
    W_t <- W0 (1 - M) + W_t M                         after every optimizer step

g_t is the whole step's gradient before clipping. mask="binary" takes M = 1 where I < G, the paper's ablation. Copies of
the trained weights besides the optimizer's: W0 and A. I is computed anew, which is cheaper than keeping it.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import choose
from .checks import require_optional_count
from .rule import MaskRule, rule_method
from .tuner import Tuned

MASKS = ("weighted", "binary")


def importance(values: Tensor) -> Tensor:
    """R: the normalized rank of each entry, in (0, 1); zeros for a tensor of zeros, a half where all |X| are equal."""
    size = values.abs()
    low, high = size.aminmax()
    if low == high:  # torch's std would be the rounding of the mean
        return size.fill_(0.5 if high > 0 else 0.0)
    mean, spread = size.mean(), size.std()
    return size.sub_(mean).div_(spread).sigmoid_()


def selection_mask(start: Tensor, accumulated: Tensor, weighted: bool = True) -> Tensor:
    """M, in [0, 1], from W0 and A; zeros where nothing is selected."""
    before, now = importance(start), importance(accumulated)
    both = (before + now).clamp_(min=torch.finfo(now.dtype).tiny)  # of an entry far below all others, both round to 0
    selected = before.lt_(now)  # 1 or 0: floats, as products are many times faster than torch.where
    if not weighted or not (count := selected.sum()):
        return selected
    ratio = now.mul_(selected).div_(both)
    return ratio.div_(ratio.sum() / count).clamp_(max=1.0)


class Spider(MaskRule):
    """SPIDER as an update rule."""

    accumulates = True
    kind: str = "weighted"

    def mask(self, tensor: Tuned) -> Tensor:
        return selection_mask(tensor.start(), self.accumulated(tensor), self.kind == "weighted")


@dataclass(frozen=True)
class SpiderOptions:
    """layers: the last so many blocks of the language model (the paper: 2, and the connector); mask: "weighted" or
    "binary"."""

    layers: int | None = 2
    mask: str = "weighted"

    def __post_init__(self):
        choose("mask", self.mask, MASKS)
        require_optional_count(layers=self.layers)


METHOD = rule_method("spider", Spider, SpiderOptions, lambda options: {"kind": options.mask},
                     formula="all of the last blocks; about half end changed", source="Huang et al. 2024")
