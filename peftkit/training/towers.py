"""How each model type encodes pictures: its frozen tower, and the connector on what the tower made."""
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..data.patches import real_patches
from ..models.regions import architecture


def connect(model: nn.Module, features: Tensor) -> dict:
    """Forward arguments that stand in for the pictures: the connector's output on cached features.

    features: (B, patches, vision width), zeros after the patches of a smaller picture. Gradients reach a trainable
    connector as if the tower had run.
    """
    base = unwrap(model)
    tokens = image_tokens(base, features)
    outputs = tokens if base.config.model_type == "paligemma" else [tokens.flatten(0, -2)]  # the others join a list
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=outputs)}}


def image_tokens(base: nn.Module, features: Tensor) -> Tensor:
    """The connector's output (B, image tokens, width) on the tower's (B, patches, vision width).

    Qwen2-VL's pictures have as many tokens as their sizes ask for: (sum of image tokens, width).
    """
    connector, kind = base.get_submodule(architecture(base).connector), base.config.model_type
    features = features.to(base.device, base.dtype)
    if kind not in PADDED:
        return connector(features)
    real = features.any(-1)  # (B, patches)
    return connector(features, attention_mask=real) if kind == "idefics2" else connector(features[real])


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
    features = model.model.vision_model(pixels, patch_attention_mask=mask).last_hidden_state
    return features.masked_fill(~mask.flatten(1)[..., None], 0)


def _qwen2_vl_tower(model: nn.Module, pictures: dict[str, Tensor]) -> Tensor:
    patches, grids = pictures["pixel_values"], pictures["image_grid_thw"]
    real = real_patches(patches, grids)
    states = model.model.visual(patches[real].to(model.dtype), grid_thw=grids).last_hidden_state
    features = states.new_zeros(*real.shape, states.shape[-1])
    features[real] = states
    return features


def _paligemma_tower(model: nn.Module, pictures: dict[str, Tensor]) -> Tensor:
    return model.model.vision_tower(pictures["pixel_values"].to(model.dtype)).last_hidden_state


TOWERS = {"llava": _llava_tower, "idefics2": _idefics2_tower, "qwen2_vl": _qwen2_vl_tower,
          "paligemma": _paligemma_tower}
PADDED = ("idefics2", "qwen2_vl")  # their pictures differ in size: features have zeros where a picture has no patch
