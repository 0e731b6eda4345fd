"""Prefix tuning as peft has it: learned keys and values that every layer attends to before the sequence (Li 2021).

Without the MLP reparametrization, the form that Zhou 2024 counts (Table 15). It is not an identity at start: random
keys take part in every softmax. It changes where the sequence starts, so left and right padding disagree (right padding
is used in training), and gradient checkpointing is refused by peft. Disabling leaves a tuned connector on. It runs on
models that keep one plain key-value cache and count positions in one dimension. `prefix` has none of these limits.
"""
from peft import PrefixTuningConfig, TaskType

from .method import Method, dimensions
from .prompt import PromptOptions, draw_tokens

REFUSES = {
    "qwen2_vl": "its three-dimensional positions (M-RoPE) are computed from a mask that the prefix makes longer",
    "blip": "its text decoder reads the picture by cross-attention and takes no prepared key-value cache",
    "paligemma": "its bidirectional mask over picture and prompt is built for a cache that starts empty",
}


def _config(model, options: PromptOptions) -> PrefixTuningConfig:
    text, size = model.config.get_text_config(), dimensions(model)
    if model.config.is_encoder_decoder:
        return PrefixTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=options.tokens,
                                  num_layers=text.num_decoder_layers, token_dim=size.key_value,
                                  num_attention_heads=text.num_heads, num_transformer_submodules=2)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return PrefixTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=options.tokens, num_layers=size.attentions,
        token_dim=size.key_value, num_attention_heads=heads, num_transformer_submodules=1)


def _count(model, options: PromptOptions) -> int:
    d = dimensions(model)
    layers = d.attentions - d.mlps or d.attentions  # of an encoder-decoder, those of the decoder
    return options.tokens * layers * 2 * d.key_value


METHOD = Method("prefix-peft", PromptOptions, _config, _count, draw=draw_tokens, refuses=REFUSES, regions=("prefix",),
                source="Li & Liang 2021; Zhou et al. 2024", formula="tokens × layers × 2 × key-value width")
