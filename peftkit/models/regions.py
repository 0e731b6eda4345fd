"""Regions: which module of an architecture is the vision tower, the connector, the language model, the head.

One table for every supported model type (module names of transformers 5). Patterns are anchored at the start of the
module's path, so a name that also occurs in the vision tower (`q_proj`, `fc1`, ...) is never taken by accident.
"""
import re
from dataclasses import dataclass

from torch import nn

from ..errors import choose

REGIONS = ("vision", "connector", "language", "head")


@dataclass(frozen=True)
class Architecture:
    """Where a model type keeps its regions.

    connector is the module path of the connector, or None where it is spread over the text layers; vision and language
    are those of the tower and the language model; blocks is that of the language model's list of layers. The patterns
    are tried in the order connector, head, vision, language. The other fields name linear layers inside one block, by
    their path from the block.
    """

    connector: str | None
    vision: str
    language: str
    blocks: str
    patterns: dict[str, str]
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    attention_out: str = "self_attn.o_proj"
    mlp_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    mlp_out: str = "mlp.down_proj"

    @property
    def attention(self) -> tuple[str, ...]:
        """All linear layers of a block's attention."""
        return self.query, self.key, self.value, self.attention_out

    @property
    def mlp(self) -> tuple[str, ...]:
        """All linear layers of a block's MLP."""
        return *self.mlp_in, self.mlp_out

    def targets(self, layers: tuple[str, ...]) -> str:
        """A regular expression for these layers of every block, anchored so that it matches nowhere else."""
        return rf"{re.escape(self.blocks)}\.\d+\.({'|'.join(map(re.escape, layers))})"


def _standard(connector: str, vision: str, language: str) -> Architecture:
    dot = re.escape
    return Architecture(connector, vision, language, f"{language}.layers", {
        "connector": dot(connector) + r"\b", "head": r"lm_head\b", "vision": dot(vision) + r"\b",
        "language": dot(language) + r"\b",
    })


ARCHITECTURES = {
    "llava": _standard("model.multi_modal_projector", "model.vision_tower", "model.language_model"),
    "idefics2": _standard("model.connector", "model.vision_model", "model.text_model"),
    "qwen2_vl": _standard("model.visual.merger", "model.visual", "model.language_model"),
    "paligemma": _standard("model.multi_modal_projector", "model.vision_tower", "model.language_model"),
    "blip": Architecture(None, "vision_model", "text_decoder", "text_decoder.bert.encoder.layer", {
        "connector": r"text_(?:encoder|decoder\.bert)\.encoder\.layer\.\d+\.crossattention\b",
        "head": r"text_decoder\.cls\b", "vision": r"vision_model\b", "language": r"text_(?:encoder|decoder)\b",
    }, query="attention.self.query", key="attention.self.key", value="attention.self.value",
        attention_out="attention.output.dense", mlp_in=("intermediate.dense",), mlp_out="output.dense"),
}


def architecture(model: nn.Module) -> Architecture:
    """The table row of a model (peft-wrapped or not). Raises PeftkitError for an unsupported type."""
    return ARCHITECTURES[choose("model type", model.config.model_type, ARCHITECTURES)]


def region_of(arch: Architecture, name: str) -> str | None:
    """The region ("vision", "connector", "language", "head") of a parameter or module name, or None."""
    for region, pattern in arch.patterns.items():
        if re.match(rf"(?:base_model\.(?:model\.)?)?{pattern}", name):  # what peft puts before a name
            return region
    return None


def region_modules(model: nn.Module, region: str, leaf: str) -> list[str]:
    """Names of the modules in a region whose last path element fully matches the regular expression `leaf`."""
    arch = architecture(model)
    choose("region", region, REGIONS)
    return [name for name, _ in model.named_modules()
            if region_of(arch, name) == region and re.fullmatch(leaf, name.rsplit(".", 1)[-1])]
