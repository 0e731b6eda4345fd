"""The loss of pre-training: packs of pictures, or of text only, straight into the language model."""
from torch import Tensor
from torch.nn import functional as F

from ..data.packing import Pack
from ..models.regions import architecture


def packed_loss(model, batch: Pack, image_features: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over the answer tokens of a pack.

    image_features: (B, image tokens, width), the connector's output, or None for packs of text only.
    """
    embeds = model.get_input_embeddings()(batch.ids)  # (B, L, width)
    if image_features is not None:
        slots = (batch.ids == model.config.image_token_id)[..., None]
        embeds = embeds.masked_scatter(slots, image_features.to(embeds.dtype))
    language = model.get_submodule(architecture(model).language)
    hidden = language(inputs_embeds=embeds, attention_mask=batch.mask, position_ids=batch.positions,
                      use_cache=False).last_hidden_state
    learned = batch.labels != -100
    return F.cross_entropy(model.lm_head(hidden[learned]), batch.labels[learned])
