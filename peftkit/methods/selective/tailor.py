"""Model Tailor: after training, keep a patch of each linear layer and make up for the rest (Zhu et al. 2024).

arXiv 2402.12048. A layer at a time, W (out, in), with the inputs X (in, tokens) of calibration batches; in blocks of
128 columns:

    H = X X^T + damping * mean(diag) * 1;   U: upper Cholesky factor of H^-1
    score = 0.8 z(|W - W0|) + 0.2 z(W^2 / diag(U)^2)         z: over each row inside the block
    kept = the share of the block's entries with the highest score; the others return to W0
    W_j <- W_j - (W_i - W0_i) / U_ii * U_ij                  for j > i, after column i: what still comes makes up for it

The last line is SparseGPT's, with W0 in the place of zero. The released code (facts, 4) differs: it adds there where
SparseGPT subtracts, it takes a layer's inputs after the layers below have been tailored, works on decoder layers 20 to
31 of LLaVA only, puts the projector back to W0, and leaves norms as trained. Here all layers see the inputs of the
trained model, and trained tensors other than linear layers' weights (norms, biases, embeddings) return to W0, so that
the patch is all that differs.
"""
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ...errors import PeftkitError, require_positive
from .checks import all_batches, require_part
from .masks import largest
from .tuner import Tuned, be_sparse, tuned

BLOCK = 128


@torch.no_grad()
def tailor(model: nn.Module, batches: Iterable, run: Callable[[nn.Module, object], object], share: float = 0.1, *,
           damping: float = 0.01, adapter_name: str = "default") -> None:
    """Change the trained weights of a selective method in place; from now on it is saved as a sparse difference.

    batches: for calibration (the paper: 128 examples of the target), of which every token counts, padding too.
    run(model, batch): one forward pass. share: of each linear layer's entries, kept. Memory: (in, in) floats a layer.
    Raises PeftkitError for a value out of range, no batches, no linear layer, or one that no batch reaches.
    """
    require_part(share)
    require_positive(damping=damping)
    batches, tensors = all_batches(batches), tuned(model, adapter_name)
    linear = [tensor for tensor in tensors if _linear(tensor) is not None]
    if not linear:
        raise PeftkitError("no trained tensor is a linear layer's weight; accepted: a method that trains some")
    products = _products(model, linear, batches, run)
    for tensor in tensors:
        if tensor.name in products:
            factor = inverse_factor(products.pop(tensor.name), damping)
            tensor.weight.copy_(tailored(tensor.weight, tensor.start(), factor, share))
        else:
            tensor.weight.copy_(tensor.start())
    be_sparse(model, adapter_name)


def tailored(weight: Tensor, start: Tensor, factor: Tensor, share: float) -> Tensor:
    """The new weights, (out, in), from W, W0 and U (in, in)."""
    size, weight = (weight - start).abs(), weight.clone()
    for first in range(0, weight.shape[1], BLOCK):
        block = slice(first, first + BLOCK)
        here, target, inner = weight[:, block], start[:, block], factor[block, block]
        score = 0.8 * standardized(size[:, block]) + 0.2 * standardized((here / inner.diagonal()) ** 2)
        kept, errors = largest(score, share), torch.zeros_like(here)
        for i in range(here.shape[1]):
            new = torch.where(kept[:, i], here[:, i], target[:, i])
            errors[:, i] = (here[:, i] - new) / inner[i, i]
            here[:, i + 1:] -= torch.outer(errors[:, i], inner[i, i + 1:])
            here[:, i] = new
        weight[:, first + BLOCK:] -= errors @ factor[block, first + BLOCK:]
    return weight


def inverse_factor(product: Tensor, damping: float) -> Tensor:
    """U, upper triangular with U^T U = H^-1, from X X^T (in, in); its scale does not matter to the weights."""
    hessian = product.clone()
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1.0  # inputs that are always zero
    diagonal += damping * diagonal.mean()
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)


def standardized(values: Tensor) -> Tensor:
    """z of each row: mean 0, unbiased standard deviation 1; zeros for a row of equal values."""
    centered = values - values.mean(1, keepdim=True)
    spread = values.std(1, keepdim=True) if values.shape[1] > 1 else torch.zeros_like(centered)
    return torch.where(spread > 0, centered / spread, 0.0)


def _linear(tensor: Tuned) -> nn.Linear | None:
    """The layer whose weight this is, if it is one."""
    path, _, leaf = tensor.path.rpartition(".")
    owner = tensor.layer.base_layer.get_submodule(path)
    return owner if leaf == "weight" and isinstance(owner, nn.Linear) else None


def _products(model: nn.Module, tensors: list[Tuned], batches: list, run: Callable) -> dict[str, Tensor]:
    """X X^T of each linear layer's inputs, (in, in) in float32."""
    products: dict[str, Tensor] = {}

    def watch(name: str):
        def add(_, inputs: tuple[Tensor]) -> None:
            x = inputs[0].flatten(0, -2).float()  # (tokens, in)
            products[name] = products[name].addmm_(x.T, x) if name in products else x.T @ x
        return add

    hooks = [_linear(tensor).register_forward_pre_hook(watch(tensor.name)) for tensor in tensors]
    try:
        for batch in batches:
            run(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    missed = [tensor.name for tensor in tensors if tensor.name not in products]
    if missed:
        raise PeftkitError(f"no calibration batch reached {', '.join(missed[:3])}; accepted: batches that run every "
                           "trained layer, pictures included")
    return products
