"""Regions: which module of an architecture is the vision tower, the connector, the language model, the head.

One table for every supported model type (module names of transformers 5). Patterns are anchored at the start of the
module's path, so a name that also occurs in the vision tower (`q_proj`, `fc1`, ...) is never taken by accident.
"""
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ..errors import choose

REGIONS = ("vision", "connector", "language", "head")


@dataclass(frozen=True)
class Architecture:
    """Where a model type keeps its regions.

    connector is the module path of the connector, or None where there is none (T5) or where it is spread over the text
    layers (BLIP); vision and language are those of the tower and the language model; blocks is that of the language
    model's lists of layers. The patterns are tried in the order connector, head, vision, language.

    text and image are the modules whose outputs are the text and image tokens that enter the language model; context
    is the module whose hidden states end in the head. The other fields name modules inside one block, by their path
    from the block. In all these paths a dot is a dot; other regular expression syntax may name several modules at
    once. None says that the model type has no such module.
    """

    connector: str | None
    vision: str | None
    language: str | None
    blocks: str
    patterns: dict[str, str]
    text: str
    image: str | None
    context: str
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    attention_out: str = "self_attn.o_proj"
    mlp_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    mlp_out: str = "mlp.down_proj"
    attention_module: str = "self_attn"
    mlp_module: str | None = "mlp"
    mlp_norm: str | None = "post_attention_layernorm"

    @property
    def attention(self) -> tuple[str, ...]:
        """All linear layers of a block's attention."""
        return self.query, self.key, self.value, self.attention_out

    @property
    def mlp(self) -> tuple[str, ...]:
        """All linear layers of a block's MLP."""
        return *self.mlp_in, self.mlp_out

    def targets(self, modules: tuple[str, ...]) -> str:
        """A regular expression for these modules of every block, anchored so that it matches nowhere else."""
        return rf"{self.every_block}\.({'|'.join(map(_path, modules))})"

    def region(self, name: str) -> str:
        """A regular expression for every path in a region. Raises PeftkitError for a region that the type lacks."""
        own = self.patterns[choose("region of this model type", name, self.patterns)]
        earlier = itertools.takewhile(lambda pattern: pattern != own, self.patterns.values())
        return "".join(f"(?!{pattern})" for pattern in earlier) + f"{own}.*"

    def last_blocks(self, numbers: Iterable[int]) -> str:
        """A regular expression for every path in these blocks, of those that lead to the head."""
        chosen = "|".join(map(str, numbers))
        return rf"(?={_path(self.context)}\b){_path(self.blocks)}\.(?:{chosen})\..*"

    @property
    def every_block(self) -> str:
        """A regular expression for the blocks themselves."""
        return rf"{_path(self.blocks)}\.\d+"


def _path(path: str) -> str:
    return path.replace(".", r"\.")


def _decoder_only(connector: str, vision: str, language: str, image: str) -> Architecture:
    patterns = {"connector": connector, "head": "lm_head", "vision": vision, "language": language}
    return Architecture(
        connector, vision, language, f"{language}.layers",
        {region: _path(path) + r"\b" for region, path in patterns.items()},
        text=f"{language}.embed_tokens", image=f"{connector}.{image}", context=language)


ARCHITECTURES = {
    "llava": _decoder_only("model.multi_modal_projector", "model.vision_tower", "model.language_model", "linear_2"),
    "idefics2": _decoder_only("model.connector", "model.vision_model", "model.text_model", "perceiver_resampler.norm"),
    "qwen2_vl": _decoder_only("model.visual.merger", "model.visual", "model.language_model", "mlp.2"),
    "paligemma": _decoder_only("model.multi_modal_projector", "model.vision_tower", "model.language_model", "linear"),
    "blip": Architecture(
        None, "vision_model", "text_decoder", "text_decoder.bert.encoder.layer", {
            "connector": r"text_(?:encoder|decoder\.bert)\.encoder\.layer\.\d+\.crossattention\b",
            "head": r"text_decoder\.cls\b", "vision": r"vision_model\b", "language": r"text_(?:encoder|decoder)\b"},
        text="text_encoder.embeddings.word_embeddings", image=None, context="text_decoder.bert",
        query="attention.self.query", key="attention.self.key", value="attention.self.value",
        attention_out="attention.output.dense", mlp_in=("intermediate.dense",), mlp_out="output.dense",
        attention_module="attention.self", mlp_module=None, mlp_norm=None),
    "t5": Architecture(
        None, None, None, "(encoder|decoder).block",
        {"head": r"lm_head\b", "language": r"(?:shared|encoder|decoder)\b"},
        text="encoder.embed_tokens", image=None, context="decoder",
        query="layer.[01].(SelfAttention|EncDecAttention).q", key="layer.[01].(SelfAttention|EncDecAttention).k",
        value="layer.[01].(SelfAttention|EncDecAttention).v",
        attention_out="layer.[01].(SelfAttention|EncDecAttention).o",
        mlp_in=("layer.[12].DenseReluDense.wi(_[01])?",), mlp_out="layer.[12].DenseReluDense.wo",
        attention_module="layer.[01].(SelfAttention|EncDecAttention)", mlp_module="layer.[12].DenseReluDense",
        mlp_norm=None),
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
