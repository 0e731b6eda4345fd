"""Grafting: after training, keep the few changes that serve the target (Panigrahi et al. 2023, arXiv 2302.06600).

    W(S) = W0 + gamma (W - W0),   gamma = sigmoid(S)        S is optimized on the target's loss, the weights are not
    W = W0 + [S among the largest share] (W - W0)           over all tensors together

S starts at log(|W - W0| / t), with t the size of change that the given share of entries exceeds: gamma is a half there,
and near 1 for the most moved entries. Panigrahi keeps 0.01 %; Huang 2024 does not print its share (facts, 4).
"""
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from ...errors import PeftkitError, require_count, require_positive
from .tuner import Tuned, be_sparse, tuned


def graft(model: nn.Module, batches: Collection, loss: Callable[[nn.Module, object], Tensor], share: float = 0.01, *,
          epochs: int = 1, learning_rate: float = 0.1, adapter_name: str = "default") -> None:
    """Change the trained weights of a selective method in place; the adapter is saved as a sparse difference from now on.

    batches: of the target, gone through `epochs` times with one step of Adam on S each. loss(model, batch) is a scalar,
    as `peftkit.training.loop.answer_loss` gives. share: of all trained entries that keep their trained value (rounded).
    Memory: five more copies of the trained weights. Raises PeftkitError for a value out of range, no batches, weights
    that have not moved, or a loss that does not depend on the trained weights.
    """
    require_open_share(share=share)
    require_batches(batches)
    require_count(epochs=epochs)
    require_positive(learning_rate=learning_rate)
    tensors = tuned(model, adapter_name)
    changes = [(tensor.weight - tensor.start()).detach() for tensor in tensors]
    scores = _first_scores(changes, share)
    optimizer = torch.optim.Adam(scores, lr=learning_rate)
    trainable = [tensor.weight.requires_grad for tensor in tensors]
    for tensor in tensors:
        tensor.weight.requires_grad_(True)
    for _ in range(epochs):
        for batch in batches:
            _put(tensors, changes, [score.sigmoid() for score in scores])
            loss(model, batch).backward()
            _backward_to_scores(tensors, changes, scores)
            optimizer.step()
    for tensor, before in zip(tensors, trainable):
        tensor.weight.requires_grad_(before)
    _put(tensors, changes, _largest_of_all(scores, share))
    be_sparse(model, adapter_name)


def _first_scores(changes: list[Tensor], share: float) -> list[Tensor]:
    sizes = torch.cat([change.abs().flatten() for change in changes])
    if not sizes.any():
        raise PeftkitError("the trained weights equal the pre-trained ones; accepted: a model that has been trained")
    threshold = sizes.topk(_count(sizes, share)).values[-1].clamp(min=torch.finfo(sizes.dtype).tiny)
    return [(change.abs() / threshold).clamp(min=torch.finfo(sizes.dtype).tiny).log() for change in changes]


def _backward_to_scores(tensors: list[Tuned], changes: list[Tensor], scores: list[Tensor]) -> None:
    """dL/dS = dL/dW (W - W0) gamma (1 - gamma); gradients of the weights are released."""
    if all(tensor.weight.grad is None for tensor in tensors):
        raise PeftkitError("the loss gave no trained weight a gradient; accepted: a loss that runs the given model")
    for tensor, change, score in zip(tensors, changes, scores):
        gamma = score.sigmoid()
        score.grad = None if tensor.weight.grad is None else tensor.weight.grad * change * gamma * (1 - gamma)
        tensor.weight.grad = None


@torch.no_grad()
def _put(tensors: list[Tuned], changes: list[Tensor], masks: list[Tensor]) -> None:
    """W <- W0 + mask (W - W0)"""
    for tensor, change, mask in zip(tensors, changes, masks):
        tensor.weight.copy_(tensor.start() + mask * change)


def _largest_of_all(scores: list[Tensor], share: float) -> list[Tensor]:
    together = torch.cat([score.flatten() for score in scores])
    chosen = torch.zeros_like(together, dtype=torch.bool)
    chosen[together.topk(_count(together, share)).indices] = True
    return [part.view(score.shape) for part, score in zip(chosen.split([s.numel() for s in scores]), scores)]


def _count(entries: Tensor, share: float) -> int:
    return max(1, round(share * entries.numel()))
