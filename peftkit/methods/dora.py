"""DoRA: LoRA whose result is split into direction and magnitude, W' = m (W + s B A) / |W + s B A| (Liu et al. 2024).

m is one learned number an output of each layer and starts at the row norms of W, so that W' = W up to rounding. Load a
saved one through peft: transformers' own `load_adapter` drops m (its names do not match; transformers 5.23, peft 0.21.2).
"""
from .lora import LoraOptions, count_lora, draw_lora, lora_config
from .method import Method, dimensions


def _config(model, options: LoraOptions):
    return lora_config(model, options, use_dora=True)


def _count(model, options: LoraOptions) -> int:
    d = dimensions(model)
    attention = d.attentions * (d.query + d.width + 2 * d.key_value)  # query, output, key, value
    mlp = d.mlps * (d.mlp_in * d.mlp + d.width)
    outputs = {"attention": attention, "mlp": mlp, "both": attention + mlp}[options.placement]
    return count_lora(model, options) + outputs


METHOD = Method("dora", LoraOptions, _config, _count, draw=draw_lora, merges=True,
                source="Liu et al. 2024; Huang et al. 2024", formula="LoRA's + Σ out over adapted layers")
