"""One forward pass over a training batch, packed or not, and the loss on its answers."""
import torch
from peft import PeftType
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.encoded import IGNORE
from ..methods import leading_tokens
from .last_block import learned_only
from .towers import connect


def answer_loss(model: nn.Module, batch: dict[str, Tensor], reduction: str = "mean") -> Tensor:
    """Cross-entropy of the answer tokens; nothing is computed after the last attention for other positions.

    reduction: "mean" over all of them, or "none": (N,), one token's after the other's, row by row.
    batch: as `Encoded.training_batch` or `Encoded.packed_batch` makes it, with "features" (B, tokens, vision width) or
    the pictures' tensors.
    """
    inputs = dict(batch)
    labels = inputs.pop("labels")  # (B, L)
    if "features" in inputs:
        inputs.update(connect(model, inputs.pop("features")))
    learned = labels != IGNORE
    index = F.pad(learned, (leading_tokens(model), 0)).flatten().nonzero().squeeze(1)  # (N,) of the N answer tokens
    packed = inputs["attention_mask"].ndim == 4
    with learned_only(model, index):
        logits = (packed_forward if packed else _plain)(model, inputs | {"use_cache": False}).logits[0]  # (N, vocabulary)
    return F.cross_entropy(logits.float(), labels[learned], reduction=reduction)


def _plain(model: nn.Module, inputs: dict):
    return model(**inputs)


def packed_forward(model: nn.Module, inputs: dict):
    """The mask of a pack is four-dimensional: virtual tokens that peft puts in front are put there by hand."""
    inputs["attention_mask"] = inputs["attention_mask"].to(model.dtype)  # (B, 1, L, L)
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return model(**inputs)
    ids, tokens = inputs.pop("input_ids"), config.num_virtual_tokens
    inputs["position_ids"] = inputs["position_ids"] + tokens
    seen = F.pad(inputs["attention_mask"], (tokens, 0))  # every position sees the virtual tokens
    if config.peft_type == PeftType.PREFIX_TUNING:
        cache = model.get_prompt(len(ids))
        return model.base_model(input_ids=ids, **inputs | {"attention_mask": seen, "past_key_values": cache})
    prompt = model.get_prompt(len(ids)).to(model.dtype)  # (B, tokens, width)
    embeds = torch.cat([prompt, model.word_embeddings(ids)], dim=1)
    length = embeds.shape[1]
    among = torch.full((tokens, length), torch.finfo(seen.dtype).min, dtype=seen.dtype, device=seen.device).triu(1)
    inputs["attention_mask"] = torch.cat([among.expand(len(ids), 1, -1, -1), seen], dim=2)
    front = torch.arange(tokens, device=ids.device).expand(len(ids), -1)
    inputs["position_ids"] = torch.cat([front, inputs["position_ids"]], dim=1)
    return model.base_model(inputs_embeds=embeds, **inputs)
