"""What every PEFT method states: its options, its peft configuration, its initial values, its size, its source."""
from collections.abc import Callable
from dataclasses import dataclass

from peft import PeftConfig
from torch import Generator, Tensor, nn

PLACEMENTS = ("attention", "mlp", "both")


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a language model. width: hidden; key_value: width of keys and values (smaller with grouped queries);
    mlp: inner width; layers: number of blocks; mlp_in: how many layers read into the MLP (2 with a gate)."""

    width: int
    key_value: int
    mlp: int
    layers: int
    mlp_in: int = 2


def dimensions(model: nn.Module) -> Dimensions:
    """Read the sizes from a model's configuration."""
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    return Dimensions(text.hidden_size, groups * head, text.intermediate_size, text.num_hidden_layers,
                      1 if model.config.model_type == "blip" else 2)


@dataclass(frozen=True)
class Method:
    """One PEFT method.

    options: a dataclass type whose defaults work. peft_config(model, options) builds the configuration that peft
    injects. draw(name, tensor, generator) overwrites a new parameter in place with its initial values, or leaves it.
    count(dimensions, options) is the number of trainable parameters by formula, connector not included.
    """

    name: str
    options: type
    peft_config: Callable[[nn.Module, object], PeftConfig]
    draw: Callable[[str, Tensor, Generator], None]
    count: Callable[[Dimensions, object], int]
    source: str
