"""Prefix tuning: learned keys and values that every layer attends to before the sequence (Li & Liang 2021).

This is peft's own prefix without the MLP reparametrization, the form that Zhou 2024 counts (Table 15). It is not an
identity at start: random keys take part in every softmax. It changes where the sequence starts, so right padding is
used in training. It runs on models that keep one plain key-value cache and count positions in one dimension.
"""
from dataclasses import dataclass

from peft import PrefixTuningConfig, TaskType

from ..errors import PeftkitError, require_count
from .method import Dimensions, Method, dimensions

REFUSED = {
    "qwen2_vl": "its three-dimensional positions (M-RoPE) are computed from a mask that the prefix makes longer",
    "blip": "its text decoder reads the picture by cross-attention and takes no prepared key-value cache",
    "paligemma": "its bidirectional mask over picture and prompt is built for a cache that starts empty",
}


@dataclass(frozen=True)
class PrefixOptions:
    """tokens: number of virtual tokens."""

    tokens: int = 20

    def __post_init__(self):
        require_count(tokens=self.tokens)


def _config(model, options: PrefixOptions) -> PrefixTuningConfig:
    reason = REFUSED.get(model.config.model_type)
    if reason:
        raise PeftkitError(f"prefix does not work on {model.config.model_type} models: {reason}; "
                           "accepted: llava, idefics2")
    text, size = model.config.get_text_config(), dimensions(model)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return PrefixTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=options.tokens, num_layers=size.layers,
        token_dim=size.key_value, num_attention_heads=heads, num_transformer_submodules=1)


def _draw(name, tensor, generator) -> None:
    if "prompt_encoder" in name:  # peft's own distribution, that of nn.Embedding
        tensor.normal_(0.0, 1.0, generator=generator)


def _count(d: Dimensions, options: PrefixOptions) -> int:
    return options.tokens * d.layers * 2 * d.key_value


METHOD = Method("prefix", PrefixOptions, _config, _draw, _count, "Li & Liang 2021; Zhou et al. 2024")
