"""LoRA: y = W x + (alpha / rank) B A x, with A (rank, in) random and B (out, rank) zero (Hu 2021; Zhou 2024, sec. 3).

Zhou 2024 adapts every linear layer of the language model except the head: placement "both", rank 128, alpha 256.
"""
from dataclasses import dataclass
from math import sqrt

from peft import LoraConfig

from ..errors import choose, require_count, require_positive, require_share
from ..models.regions import architecture
from .method import PLACEMENTS, Method, dimensions, require_fits


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


def lora_config(model, options: LoraOptions, **more) -> LoraConfig:
    """peft's configuration; more: fields of a variant of LoRA."""
    arch, d = architecture(model), dimensions(model)
    require_fits(d.width if options.placement == "mlp" else min(d.width, d.key_value), rank=options.rank)
    layers = {"attention": arch.attention, "mlp": arch.mlp, "both": arch.attention + arch.mlp}[options.placement]
    return LoraConfig(r=options.rank, lora_alpha=options.alpha or 2 * options.rank, lora_dropout=options.dropout,
                      target_modules=arch.targets(layers), **more)


def draw_lora(name, tensor, generator, options) -> None:
    """peft's own distribution for A: Kaiming uniform with a = sqrt(5); B stays at zero."""
    if "lora_A" in name:
        bound = 1 / sqrt(tensor.shape[1])
        tensor.uniform_(-bound, bound, generator=generator)


def count_lora(model, options: LoraOptions) -> int:
    """rank × (in + out), summed over the adapted layers."""
    d = dimensions(model)
    attention = d.attentions * 2 * ((d.width + d.query) + (d.width + d.key_value))  # query, output; key, value
    mlp = d.mlps * (d.mlp_in + 1) * (d.width + d.mlp)
    return options.rank * {"attention": attention, "mlp": mlp, "both": attention + mlp}[options.placement]


METHOD = Method("lora", LoraOptions, lora_config, count_lora, draw=draw_lora, merges=True,
                source="Hu et al. 2021; Zhou et al. 2024", formula="rank × Σ (in + out) over adapted layers")
