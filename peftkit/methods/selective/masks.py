"""SPIDER's rivals with a mask: half of each tensor, chosen at random, by small weights, or by large gradients.

Huang 2024's ablation (facts, section 4). What is not chosen is put back to its pre-trained value after every step.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from ..seeding import seed_for
from .checks import require_optional_count, require_part
from .rule import MaskRule, rule_method
from .tuner import Tuned


class FixedMask(MaskRule):
    """A mask that is chosen once."""

    share: float = 0.5

    def __init__(self, model, seed: int = 42, adapter_name: str = "default", **options):
        super().__init__(model, seed, adapter_name, **options)
        self.masks: dict[str, Tensor] = {}

    def choose(self, tensor: Tuned) -> Tensor:
        """Which entries train, bool."""
        raise NotImplementedError

    def mask(self, tensor: Tuned) -> Tensor:
        if tensor.name not in self.masks:
            self.masks[tensor.name] = self.choose(tensor)
        return self.masks[tensor.name]


class RandomMask(FixedMask):
    """A random `share` of the entries trains."""

    def choose(self, tensor: Tuned) -> Tensor:
        drawn = torch.rand(tensor.weight.shape, generator=seed_for(self.seed, tensor.name))
        return largest(drawn, self.share).to(tensor.weight.device)


class MagnitudeMask(FixedMask):
    """The `share` of entries with the smallest pre-trained values train."""

    def choose(self, tensor: Tuned) -> Tensor:
        return largest(-tensor.start().abs(), self.share)


class GradientMask(MaskRule):
    """The `share` of entries with the largest accumulated gradient train, chosen anew after every step."""

    accumulates = True
    share: float = 0.5

    def mask(self, tensor: Tuned) -> Tensor:
        return largest(self.accumulated(tensor).abs(), self.share)


def largest(values: Tensor, share: float) -> Tensor:
    """True for exactly the share of entries with the largest values (their number rounded); bool, of the same shape."""
    chosen = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    chosen[values.flatten().topk(round(share * values.numel())).indices] = True
    return chosen.view(values.shape)


@dataclass(frozen=True)
class MaskOptions:
    """layers: the last so many blocks of the language model; share: of each tensor's entries that train."""

    layers: int | None = 2
    share: float = 0.5

    def __post_init__(self):
        require_part(self.share)
        require_optional_count(layers=self.layers)


METHODS = tuple(
    rule_method(name, rule, MaskOptions, lambda options: {"share": options.share},
                formula="all of the last blocks; the share ends changed", source="Huang et al. 2024")
    for name, rule in (("random-mask", RandomMask), ("magnitude-mask", MagnitudeMask), ("gradient-mask", GradientMask)))
