"""L2-SP: a penalty strength / 2 |W - W0|^2, summed over entries, pulls weights to their start (Li et al. 2018)."""
from dataclasses import dataclass

import torch

from ...errors import require_positive
from .checks import require_optional_count
from .rule import Rule, rule_method


class L2SP(Rule):
    """Adds the penalty's gradient, strength (W - W0), to the loss's."""

    strength: float = 0.01

    @torch.no_grad()
    def after_backward(self) -> None:
        for tensor in self.tensors:
            if tensor.weight.grad is not None:
                tensor.weight.grad.add_(tensor.weight - tensor.start(), alpha=self.strength)


@dataclass(frozen=True)
class L2SPOptions:
    """layers: the last so many blocks of the language model; strength: of the penalty."""

    layers: int | None = 2
    strength: float = 0.01

    def __post_init__(self):
        require_positive(strength=self.strength)
        require_optional_count(layers=self.layers)


METHOD = rule_method("l2-sp", L2SP, L2SPOptions, lambda options: {"strength": options.strength}, sparse=False,
                     formula="all of the last blocks", source="Li et al. 2018; Huang et al. 2024")
