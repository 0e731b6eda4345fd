"""Recipes of the bundled bases: sizes, seeds and the four stages, and nothing else.

All of them are the real classes of transformers at toy size. Sizes are chosen so that no two dimensions that peft
compares by number (vocabulary, widths) are equal.
"""
from dataclasses import dataclass

from transformers import CLIPVisionConfig, Idefics2Config, LlamaConfig, LlavaConfig, MistralConfig
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig, Idefics2VisionConfig

from ..data.scenes import GRID, SIZE
from ..data.sprites import CELL
from ..data.vocabulary import vocabulary


@dataclass(frozen=True)
class Stage:
    """Optimizer steps, peak learning rate and scenes a step of one stage."""

    steps: int
    learning_rate: float
    scenes: int


@dataclass(frozen=True)
class Recipe:
    """How a bundled base is made. kind: "llava" or "idefics2"; width, layers, mlp: of the language model."""

    name: str
    kind: str
    width: int
    layers: int
    mlp: int
    vision: Stage
    language: Stage
    alignment: Stage
    instruction: Stage
    vision_width: int = 96
    vision_layers: int = 3
    seed: int = 42


RECIPES = {recipe.name: recipe for recipe in (
    Recipe("tiny-llava-s", "llava", 128, 4, 320, Stage(900, 1.5e-3, 128), Stage(600, 2e-3, 32),
           Stage(300, 2e-3, 32), Stage(3600, 1.5e-3, 32)),
    Recipe("tiny-llava-m", "llava", 160, 5, 400, Stage(900, 1.5e-3, 128), Stage(500, 2e-3, 32),
           Stage(300, 2e-3, 32), Stage(2400, 1.5e-3, 32)),
    Recipe("tiny-idefics2", "idefics2", 128, 4, 320, Stage(900, 1.5e-3, 128), Stage(500, 2e-3, 32),
           Stage(300, 2e-3, 32), Stage(3200, 1.5e-3, 32)),
)}
IMAGE_TOKENS = GRID * GRID
HEAD_SIZE = 32
INITIALIZER_RANGE = 0.06  # with the usual 0.02 these narrow models stay on a plateau for long


def model_config(recipe: Recipe) -> LlavaConfig | Idefics2Config:
    """The transformers configuration of a recipe."""
    token = {word: number for number, word in enumerate(vocabulary())}
    special = {"pad_token_id": token["<pad>"], "bos_token_id": token["<s>"], "eos_token_id": token["</s>"]}
    text = dict(
        vocab_size=len(token), hidden_size=recipe.width, intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers, num_attention_heads=recipe.width // HEAD_SIZE,
        num_key_value_heads=recipe.width // HEAD_SIZE, max_position_embeddings=256,
        initializer_range=INITIALIZER_RANGE, tie_word_embeddings=False, **special)
    vision = dict(
        hidden_size=recipe.vision_width, intermediate_size=4 * recipe.vision_width, image_size=SIZE, patch_size=CELL,
        num_hidden_layers=recipe.vision_layers, num_attention_heads=recipe.vision_width // HEAD_SIZE)
    if recipe.kind == "llava":
        return LlavaConfig(
            vision_config=CLIPVisionConfig(**vision), text_config=LlamaConfig(**text), image_token_id=token["<image>"],
            image_seq_length=IMAGE_TOKENS, vision_feature_layer=-2, vision_feature_select_strategy="default",
            tie_word_embeddings=False, **special)
    perceiver = Idefics2PerceiverConfig(
        hidden_size=recipe.width, resampler_n_latents=IMAGE_TOKENS, resampler_depth=1, resampler_n_heads=4,
        resampler_head_dim=HEAD_SIZE, num_key_value_heads=4)
    return Idefics2Config(
        vision_config=Idefics2VisionConfig(**vision), perceiver_config=perceiver,
        text_config=MistralConfig(sliding_window=None, **text), image_token_id=token["<image>"],
        tie_word_embeddings=False, **special)
