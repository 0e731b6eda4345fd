"""The loss on held-out examples, one number each: what shows overfitting before the scores do."""
import datasets
import numpy as np
import torch
from torch import nn

from ..data.collate import Encoded, encode
from ..data.encoded import IGNORE
from ..errors import require_count
from ..training.forward import answer_loss


def answer_losses(model: nn.Module, processor, data: datasets.Dataset | Encoded, *, prompt: str = "{question}",
                  batch_size: int = 64) -> np.ndarray:
    """Mean negative log likelihood (nats) of each example's answer tokens, end token included, shape (N,).

    data: a split of a task with its `prompt` format, or one that `peftkit.data.encode` has prepared. Rows of similar
    length share a batch, which changes no loss. The model is left in eval mode. Raises PeftkitError for a bad row.
    """
    require_count(batch_size=batch_size)
    encoded = data if isinstance(data, Encoded) else encode(processor, data, prompt, split="test")
    model.eval()
    order = np.argsort(encoded.lengths(), kind="stable")
    losses = np.empty(len(encoded))
    for start in range(0, len(order), batch_size):
        rows = order[start:start + batch_size]
        losses[rows] = _losses(model, encoded, rows.tolist())
    return losses


@torch.no_grad()
def _losses(model: nn.Module, encoded: Encoded, rows: list[int]) -> list[float]:
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in encoded.training_batch(rows).items()}
    each = answer_loss(model, batch, reduction="none")  # of all answer tokens, row after row
    tokens = (batch["labels"] != IGNORE).sum(dim=1)  # (B,)
    return [part.mean().item() for part in each.split(tokens.tolist())]
