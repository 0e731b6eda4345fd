"""How much each method trains (Table 15): LLaVA-1.5 without its weights, with the paper's sizes."""
from functools import cache

import pandas as pd
import torch
import transformers

from ...errors import choose
from ...methods import inject, trainable_count, trainable_map

PAPER_SIZES = {"lora": {"rank": 128}, "adapter": {"bottleneck": 256}, "ia3": {}, "prefix-peft": {"tokens": 20}}
LANGUAGE = {  # the paper's model -> width, width inside the MLP, layers, heads
    "llava_1.5_7b": (4096, 11008, 32, 32), "llava_1.5_13b": (5120, 13824, 40, 40)}


def llava(name: str = "llava_1.5_7b") -> transformers.LlavaForConditionalGeneration:
    """LLaVA-1.5 on the meta device: every shape of the real model and no memory for its billions of numbers."""
    width, inside, layers, heads = LANGUAGE[choose("model", name, LANGUAGE)]
    vision = transformers.CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768)
    text = transformers.LlamaConfig(
        vocab_size=32064, hidden_size=width, intermediate_size=inside, num_hidden_layers=layers,
        num_attention_heads=heads, tie_word_embeddings=False)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, tie_word_embeddings=False)
    with torch.device("meta"):
        return transformers.LlavaForConditionalGeneration(config)


def llava_7b() -> transformers.LlavaForConditionalGeneration:
    """LLaVA-1.5-7B on the meta device."""
    return llava("llava_1.5_7b")


def share_row(model, method: str, **options) -> dict:
    """Inject `method` with the connector tuned, in place, and count: by formula, by modules, and as shares.

    formula and modules are trainable parameters without the connector; frozen and tuned are the shares of all
    parameters in percent, with the connector frozen or tuned.
    """
    formula = trainable_count(model, method, **options)
    with torch.device(model.device):
        regions = trainable_map(inject(model, method, connector="tuned", **options))
    connector, trained = int(regions.loc["connector", "trainable"]), int(regions["trainable"].sum())
    total = int(regions["total"].sum())
    return {"method": method, "formula": formula, "modules": trained - connector, "connector": connector,
            "frozen": 100 * (trained - connector) / total, "tuned": 100 * trained / total}


def paper_shares(name: str = "llava_1.5_7b") -> pd.DataFrame:
    """`share_row` of every method on LLaVA-1.5-7B, or -13B, with the paper's sizes."""
    return pd.DataFrame([share_row(llava(name), method, **options) for method, options in PAPER_SIZES.items()])


def formula_share(name: str, method: str, connector: str) -> float:
    """The trainable share in percent by formula alone: counts from widths and layers, no module injected."""
    model = _empty(name)
    added = trainable_count(model, method, **PAPER_SIZES[method])
    tuned = sum(weight.numel() for weight in model.model.multi_modal_projector.parameters())
    total = sum(weight.numel() for weight in model.parameters()) + added
    return 100 * (added + tuned * (connector == "tuned")) / total


@cache
def _empty(name: str) -> transformers.LlavaForConditionalGeneration:
    return llava(name)
