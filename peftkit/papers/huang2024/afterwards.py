"""What can be made of a model that full tuning has trained: five rows that start from the same weights.

"merge at the end" takes SPIDER's mask M from the sum A of all gradients, as SPIDER does, but merges once, after the
last step: W <- W0 (1 - M) + W M. It is not SPIDER, which merges after every step (facts 1.3).
"""
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from ...data import Encoded
from ...methods.selective import dare, graft, tailor
from ...methods.selective.spider import selection_mask
from ...methods.selective.tuner import tuned
from ...methods.switches import trained_beside
from ...training.forward import answer_loss
from .study import AFTERWARDS, BATCH

CALIBRATION = 128  # examples, as Model Tailor's authors take
KEPT = 0.1  # of entries, by DARE, grafting and Model Tailor alike; 1 % as grafting's authors take changes nothing here


def summed_gradients(model: nn.Module) -> dict[str, Tensor]:
    """A of every trained tensor by name: from now on, each backward pass adds its gradients, before clipping."""
    sums = {tensor.name: torch.zeros_like(tensor.weight, requires_grad=False) for tensor in tuned(model)}
    for tensor in tuned(model):
        tensor.weight.register_hook(partial(_add, sums[tensor.name]))
    return sums


def _add(total: Tensor, gradient: Tensor) -> None:
    total.add_(gradient)


def pull_as_released(model: nn.Module, strength: float = 1e-3) -> None:
    """From now on, gradients include those of the released L2 penalty: strength × mean over tensors of MSE(W, W0)."""
    tensors = tuned(model)
    for tensor in tensors:
        scale = 2 * strength / (len(tensors) * tensor.weight.numel())
        tensor.weight.register_hook(
            lambda gradient, tensor=tensor, scale=scale: gradient + scale * (tensor.weight.detach() - tensor.start()))


def each_afterwards(model: nn.Module, sums: dict[str, Tensor], rows: Encoded, seed: int) -> Iterator[str]:
    """Turn the trained model into one row of AFTERWARDS after the other; between two it is as it was."""
    trained = {tensor.name: tensor.weight.detach().clone() for tensor in tuned(model)}
    batches = [rows.training_batch(list(range(start, min(start + BATCH, len(rows)))))
               for start in range(0, len(rows), BATCH)]
    changes = (lambda: merge_at_the_end(model, sums), lambda: dare(model, drop=1 - KEPT, seed=seed),
               lambda: graft(model, batches, answer_loss, share=KEPT),
               lambda: tailor(model, batches[:CALIBRATION // BATCH], answer_loss, share=KEPT),
               lambda: put_projector_back(model))
    for name, change in zip(AFTERWARDS, changes):
        change()
        yield name
        _put(model, trained)


@torch.no_grad()
def merge_at_the_end(model: nn.Module, sums: dict[str, Tensor]) -> None:
    """W <- W0 (1 - M) + W M of every trained tensor, in place."""
    for tensor in tuned(model):
        mask = selection_mask(tensor.start(), sums[tensor.name])
        tensor.weight.lerp_(tensor.start(), 1 - mask)


@torch.no_grad()
def put_projector_back(model: nn.Module) -> None:
    """W <- W0 of the connector's tensors; the blocks stay as they were trained with the other one."""
    beside = trained_beside(model)
    for tensor in tuned(model):
        if id(tensor.weight) in beside:
            tensor.weight.copy_(tensor.start())


@torch.no_grad()
def _put(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for tensor in tuned(model):
        tensor.weight.copy_(weights[tensor.name])
