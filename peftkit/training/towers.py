"""How each model type encodes pictures: its frozen tower, and the connector on what the tower made."""
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..models.regions import architecture


def connect(model: nn.Module, features: Tensor) -> dict:
    """Forward arguments that stand in for the pictures: the connector's output on cached features.

    features: (B, tokens, vision width). Gradients reach a trainable connector as if the tower had run.
    """
    tokens = image_tokens(unwrap(model), features)
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=[tokens.flatten(0, 1)])}}


def image_tokens(base: nn.Module, features: Tensor) -> Tensor:
    """The connector's output (B, image tokens, width) on the tower's (B, patches, vision width)."""
    connector = base.get_submodule(architecture(base).connector)
    features = features.to(base.device, base.dtype)
    if base.config.model_type == "idefics2":
        everything = torch.ones(features.shape[:2], dtype=torch.bool, device=base.device)
        return connector(features, attention_mask=everything)
    return connector(features)


def unwrap(model: nn.Module) -> nn.Module:
    """The base model that peft has wrapped, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _llava_tower(model: nn.Module, pictures: dict[str, Tensor]) -> Tensor:
    config = model.config
    states = model.model.vision_tower(pictures["pixel_values"].to(model.dtype), output_hidden_states=True).hidden_states
    features = states[config.vision_feature_layer]
    return features[:, 1:] if config.vision_feature_select_strategy == "default" else features


def _idefics2_tower(model: nn.Module, pictures: dict[str, Tensor]) -> Tensor:
    pixels = pictures["pixel_values"].flatten(0, 1).to(model.dtype)  # one picture a row: (B, 1, ...) -> (B, ...)
    patch = model.config.vision_config.patch_size
    mask = pictures["pixel_attention_mask"].flatten(0, 1)[:, ::patch, ::patch].bool()
    return model.model.vision_model(pixels, patch_attention_mask=mask).last_hidden_state


TOWERS = {"llava": _llava_tower, "idefics2": _idefics2_tower}
