"""The frozen vision tower, run once: its output is kept, the connector is applied to it in every step."""
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..data.collate import Encoded
from ..models.regions import architecture, region_of

BATCH = 128
BUDGET = 4e9  # bytes of features that are kept in memory; larger sets are encoded in every step


def can_cache(model: nn.Module) -> bool:
    """Whether the model type is supported and its vision tower is frozen."""
    arch = architecture(model)
    tower_trains = any(p.requires_grad for name, p in model.named_parameters() if region_of(arch, name) == "vision")
    return model.config.model_type in TOWERS and not tower_trains


def cache_features(model: nn.Module, encoded: Encoded) -> Encoded:
    """Fill `encoded.features`, in place, unless the set is too large; model: any, wrapped by peft or not."""
    base = _unwrap(model)
    tower = TOWERS[base.config.model_type]
    device = next(base.parameters()).device
    parts = []
    with torch.no_grad():
        for start in range(0, len(encoded), BATCH):
            pictures = {name: value[start:start + BATCH].to(device) for name, value in encoded.pictures.items()}
            parts.append(tower(base, pictures).cpu())
            if parts[0].nbytes * len(encoded) / len(parts[0]) > BUDGET:
                return encoded
    encoded.features = torch.cat(parts)
    return encoded


def connect(model: nn.Module, features: Tensor) -> dict:
    """Forward arguments that stand in for the pictures: the connector's output on cached features.

    features: (B, tokens, vision width). Gradients reach a trainable connector as if the tower had run.
    """
    tokens = image_tokens(_unwrap(model), features)
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=[tokens.flatten(0, 1)])}}


def image_tokens(base: nn.Module, features: Tensor) -> Tensor:
    """The connector's output (B, image tokens, width) on the tower's (B, patches, vision width)."""
    connector = base.get_submodule(architecture(base).connector)
    features = features.to(base.device, base.dtype)
    if base.config.model_type == "idefics2":
        everything = torch.ones(features.shape[:2], dtype=torch.bool, device=base.device)
        return connector(features, attention_mask=everything)
    return connector(features)


def _unwrap(model: nn.Module) -> nn.Module:
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
