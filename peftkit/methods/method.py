"""What every PEFT method states: its options, its peft configuration, its initial values, its size, its source."""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from peft import PeftConfig
from torch import Generator, Tensor, nn

from ..errors import PeftkitError

PLACEMENTS = ("attention", "mlp", "both")


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a language model. width: hidden; query and key_value: widths of queries, and of keys or values; mlp:
    inner width; attentions and mlps: how many of these sub-layers it has (an encoder-decoder has cross-attention too);
    mlp_in: how many layers read into an MLP (2 with a gate)."""

    width: int
    query: int
    key_value: int
    mlp: int
    attentions: int
    mlps: int
    mlp_in: int = 2


def dimensions(model: nn.Module | Dimensions) -> Dimensions:
    """Read the sizes from a model's configuration (sizes are returned as they are)."""
    if isinstance(model, Dimensions):
        return model
    text = model.config.get_text_config()
    if model.config.model_type == "t5":
        inner, layers = text.num_heads * text.d_kv, text.num_layers + text.num_decoder_layers
        return Dimensions(text.d_model, inner, inner, text.d_ff, layers + text.num_decoder_layers, layers,
                          2 if text.is_gated_act else 1)
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    return Dimensions(text.hidden_size, heads * head, groups * head, text.intermediate_size, text.num_hidden_layers,
                      text.num_hidden_layers, 1 if model.config.model_type == "blip" else 2)


def attention_heads(model: nn.Module) -> int:
    """Heads of each attention in the language model."""
    text = model.config.get_text_config()
    return text.num_heads if model.config.is_encoder_decoder else text.num_attention_heads


def last_layers(model: nn.Module) -> int:
    """How many blocks lead to the head: all of a decoder-only model, those of an encoder-decoder's decoder."""
    text = model.config.get_text_config()
    return text.num_decoder_layers if model.config.is_encoder_decoder else text.num_hidden_layers


def keep_start(name: str, tensor: Tensor, generator: Generator, options) -> None:
    """The `draw` of a method whose initial values are not random."""


@dataclass(frozen=True)
class Method:
    """One PEFT method.

    options: a dataclass type whose defaults work. peft_config(model, options) builds the configuration that peft
    injects. count(model, options) is the number of trainable parameters by formula, the connector not included; model
    may be `Dimensions` where the formula needs no more. draw(name, tensor, generator, options) overwrites a new
    parameter in place with its initial values, or leaves it. regions: where its parameters lie. intrusive: whether it changes what
    happens inside the language model's blocks. merges: whether it folds into the base's weights. formula: count, in
    words. refuses: model types on which it cannot work, with the reason;
    refuses_connector: why it cannot train along a tuned connector, if so.
    """

    name: str
    options: type
    peft_config: Callable[[nn.Module, object], PeftConfig]
    count: Callable[[nn.Module | Dimensions, object], int]
    source: str
    formula: str
    draw: Callable[[str, Tensor, Generator, object], None] = keep_start
    regions: tuple[str, ...] = ("language",)
    intrusive: bool = True
    merges: bool = False
    refuses: Mapping[str, str] = field(default_factory=dict)
    refuses_connector: str = ""


def require_fits(limit: int, **values: int) -> None:
    """Raise PeftkitError for a rank or bottleneck that is larger than the layer it belongs to."""
    for name, value in values.items():
        if value > limit:
            raise PeftkitError(f"{name} is {value}; accepted: up to {limit}, the width of the layers it belongs to")
