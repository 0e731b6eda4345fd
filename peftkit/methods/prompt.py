"""Prompt tuning: learned embeddings in front of the sequence (Lester 2021), peft's own.

The prompt lengthens the sequence by `tokens`. Left and right padding disagree, because the prompt stands before the
pads: evaluate unpadded or with equal lengths. Disabling leaves a tuned connector on (a limit of peft's prompt methods).
"""
from dataclasses import dataclass

from peft import PeftType, PromptTuningConfig, TaskType

from ..errors import require_count
from .method import Method, attention_heads, dimensions

REFUSES = {
    "qwen2_vl": "peft drops the position ids, so the picture's three-dimensional positions (M-RoPE) would be lost",
    "blip": "its encoder and decoder read ids, not prepared embeddings",
    "paligemma": "its bidirectional mask over picture and prompt is built from token types that the prompt lacks",
}


@dataclass(frozen=True)
class PromptOptions:
    """tokens: number of virtual tokens."""

    tokens: int = 20

    def __post_init__(self):
        require_count(tokens=self.tokens)


def _config(model, options: PromptOptions) -> PromptTuningConfig:
    kind = TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM
    size = dimensions(model)
    return PromptTuningConfig(task_type=kind, num_virtual_tokens=options.tokens, num_layers=size.mlps,
                              token_dim=size.width, num_attention_heads=attention_heads(model),
                              num_transformer_submodules=1)


def draw_tokens(name, tensor, generator, options) -> None:
    """peft's own distribution of virtual tokens, that of nn.Embedding."""
    if "prompt_encoder" in name:
        tensor.normal_(0.0, 1.0, generator=generator)


def _count(model, options: PromptOptions) -> int:
    return options.tokens * dimensions(model).width


def leading_tokens(model) -> int:
    """By how many positions an active prompt moves a decoder-only model's logits to the right."""
    configs = getattr(model, "peft_config", {}).values()
    return sum(config.num_virtual_tokens for config in configs
               if config.peft_type == PeftType.PROMPT_TUNING and config.task_type == TaskType.CAUSAL_LM)


METHOD = Method("prompt", PromptOptions, _config, _count, draw=draw_tokens, refuses=REFUSES, regions=("prefix",),
                intrusive=False, source="Lester et al. 2021; Wang et al. 2023", formula="tokens × width")
