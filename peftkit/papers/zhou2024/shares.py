"""How much each method trains (Table 15): LLaVA-1.5-7B without its weights, with the paper's sizes."""
import pandas as pd
import torch
import transformers

from ...methods import inject, trainable_count, trainable_map

PAPER_SIZES = {"lora": {"rank": 128}, "adapter": {"bottleneck": 256}, "ia3": {}, "prefix-peft": {"tokens": 20}}


def llava_7b() -> transformers.LlavaForConditionalGeneration:
    """LLaVA-1.5-7B on the meta device: every shape of the real model and no memory for its 7 billion numbers."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768)
    text = transformers.LlamaConfig(
        vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        tie_word_embeddings=False)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, tie_word_embeddings=False)
    with torch.device("meta"):
        return transformers.LlavaForConditionalGeneration(config)


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


def paper_shares() -> pd.DataFrame:
    """`share_row` of every method on LLaVA-1.5-7B with the paper's sizes."""
    return pd.DataFrame([share_row(llava_7b(), method, **options) for method, options in PAPER_SIZES.items()])
