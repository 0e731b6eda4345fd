"""LoRA: y = W x + (alpha / rank) B A x, with A (rank, in) random and B (out, rank) zero (Hu 2021; Zhou 2024, sec. 3).

Zhou 2024 adapts every linear layer of the language model except the head: placement "both", rank 128, alpha 256.
"""
from dataclasses import dataclass
from math import sqrt

from peft import LoraConfig

from ..errors import choose, require_count, require_positive, require_share
from ..models.regions import architecture
from .method import PLACEMENTS, Dimensions, Method


@dataclass(frozen=True)
class LoraOptions:
    """rank; alpha (twice the rank unless given); placement: "attention", "mlp" or "both"; dropout: a probability."""

    rank: int = 8
    alpha: float | None = None
    placement: str = "both"
    dropout: float = 0.0

    def __post_init__(self):
        choose("placement", self.placement, PLACEMENTS)
        require_count(rank=self.rank)
        require_share(dropout=self.dropout)
        if self.alpha is not None:
            require_positive(alpha=self.alpha)


def _config(model, options: LoraOptions) -> LoraConfig:
    arch = architecture(model)
    layers = {"attention": arch.attention, "mlp": arch.mlp, "both": arch.attention + arch.mlp}[options.placement]
    return LoraConfig(r=options.rank, lora_alpha=options.alpha or 2 * options.rank, lora_dropout=options.dropout,
                      target_modules=arch.targets(layers))


def _draw(name, tensor, generator) -> None:
    if "lora_A" in name:  # peft's own distribution: Kaiming uniform with a = sqrt(5)
        bound = 1 / sqrt(tensor.shape[1])
        tensor.uniform_(-bound, bound, generator=generator)


def _count(d: Dimensions, options: LoraOptions) -> int:
    attention = 2 * (d.width + d.width) + 2 * (d.width + d.key_value)  # query and output; key and value
    mlp = (d.mlp_in + 1) * (d.width + d.mlp)
    sides = {"attention": attention, "mlp": mlp, "both": attention + mlp}[options.placement]
    return d.layers * options.rank * sides


METHOD = Method("lora", LoraOptions, _config, _draw, _count, "Hu et al. 2021; Zhou et al. 2024")
