"""Grafting: after training, keep the few changes that serve the target (Panigrahi et al. 2023, arXiv 2302.06600).

    W(S) = W0 + gamma (W - W0),   gamma = sigmoid(S)        S is optimized on the target's loss, the weights are not
    W = W where S is among the largest share, else W0       over all tensors together

S starts at log(|W - W0| / t), where t is the size of change that the share of entries reaches: gamma is a half there,
and near 1 for the most moved entries. Panigrahi keeps 0.01 %; Huang 2024's share is not known (facts, 4).
"""
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ...errors import PeftkitError, require_count, require_positive
from .checks import all_batches, require_part
from .masks import largest
from .tuner import Tuned, be_sparse, tuned


def graft(model: nn.Module, batches: Iterable, loss: Callable[[nn.Module, object], Tensor], share: float = 0.01, *,
          epochs: int = 1, learning_rate: float = 0.1, adapter_name: str = "default") -> None:
    """Change the trained weights of a selective method in place; from now on it is saved as a sparse difference.

    batches: of the target, one step of Adam on S each, gone through `epochs` times. loss(model, batch): a scalar, as
    `peftkit.training.loop.answer_loss` gives it. share: of all trained entries, kept (their number rounded).
    Memory: five more copies of the trained weights. Raises PeftkitError for a value out of range, no batches, weights
    that have not moved, or a loss that does not depend on them; the weights are as before then.
    """
    require_part(share)
    require_count(epochs=epochs)
    require_positive(learning_rate=learning_rate)
    batches, tensors = all_batches(batches), tuned(model, adapter_name)
    trained = [tensor.weight.detach().clone() for tensor in tensors]
    scores = _first_scores(tensors, trained, share)
    optimizer = torch.optim.Adam(scores, lr=learning_rate)
    frozen = [tensor.weight for tensor in tensors if not tensor.weight.requires_grad]
    try:
        for tensor in tensors:
            tensor.weight.requires_grad_(True).grad = None
        for batch in batches * epochs:
            _put(tensors, trained, [score.sigmoid() for score in scores])
            loss(model, batch).backward()
            _hand_on(tensors, trained, scores)
            optimizer.step()
    finally:
        _put(tensors, trained, [torch.ones_like(values) for values in trained])
        for weight in frozen:
            weight.requires_grad_(False)
    chosen = largest(_together(scores), share).split([score.numel() for score in scores])
    _put(tensors, trained, [part.view(score.shape) for part, score in zip(chosen, scores)])
    be_sparse(model, adapter_name)


def _first_scores(tensors: list[Tuned], trained: list[Tensor], share: float) -> list[Tensor]:
    sizes = [(values - tensor.start()).abs() for tensor, values in zip(tensors, trained)]
    together = _together(sizes)
    if not together.any():
        raise PeftkitError("the trained weights equal the pre-trained ones; accepted: a model that has been trained")
    tiny = torch.finfo(torch.float32).tiny
    threshold = together.topk(max(1, round(share * together.numel()))).values[-1].clamp(min=tiny)
    return [(size / threshold).clamp(min=tiny).log() for size in sizes]


def _hand_on(tensors: list[Tuned], trained: list[Tensor], scores: list[Tensor]) -> None:
    """dL/dS = dL/dW (W - W0) gamma (1 - gamma); a gradient of the weights is released."""
    if all(tensor.weight.grad is None for tensor in tensors):
        raise PeftkitError("the loss gave no trained weight a gradient; accepted: a loss that runs the given model")
    for tensor, values, score in zip(tensors, trained, scores):
        gamma, gradient, tensor.weight.grad = score.sigmoid(), tensor.weight.grad, None
        score.grad = None if gradient is None else gradient * (values - tensor.start()) * gamma * (1 - gamma)


@torch.no_grad()
def _put(tensors: list[Tuned], trained: list[Tensor], masks: list[Tensor]) -> None:
    """W <- W0 + mask (trained - W0), exact where the mask is 0 or 1."""
    for tensor, values, mask in zip(tensors, trained, masks):
        tensor.weight.copy_(tensor.start().lerp(values, mask.to(values)))


def _together(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])
