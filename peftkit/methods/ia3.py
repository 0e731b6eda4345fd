"""IA3: keys, values and the MLP's inner activations are multiplied by learned vectors that start at one (Liu 2022).

Zhou 2024 scales the outputs of the key and value layers and the input of the layer that leaves the MLP.
"""
from dataclasses import dataclass

from peft import IA3Config

from ..errors import choose
from ..models.regions import architecture
from .method import PLACEMENTS, Method, dimensions


@dataclass(frozen=True)
class IA3Options:
    """placement: "attention" (keys and values), "mlp" (inner activations) or "both"."""

    placement: str = "both"

    def __post_init__(self):
        choose("placement", self.placement, PLACEMENTS)


def _config(model, options: IA3Options) -> IA3Config:
    arch = architecture(model)
    attention, mlp = (arch.key, arch.value), (arch.mlp_out,)
    layers = {"attention": attention, "mlp": mlp, "both": attention + mlp}[options.placement]
    feedforward = [] if options.placement == "attention" else arch.targets(mlp)
    return IA3Config(target_modules=arch.targets(layers), feedforward_modules=feedforward)


def _count(model, options: IA3Options) -> int:
    d = dimensions(model)
    attention, mlp = d.attentions * 2 * d.key_value, d.mlps * d.mlp
    return {"attention": attention, "mlp": mlp, "both": attention + mlp}[options.placement]


METHOD = Method("ia3", IA3Options, _config, _count, merges=True, source="Liu et al. 2022; Zhou et al. 2024",
                formula="layers × (2 × key-value width + MLP width)")
