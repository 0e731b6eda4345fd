"""DARE: after training, drop most of the change at random and rescale the rest (Yu et al. 2024, arXiv 2311.03099).

    W = W0 + B (W - W0) / (1 - p)        B: each entry 0 with probability p (drop), else 1

So the expected change of every entry is the trained one. Huang 2024 does not print its p; 0.9 is common (facts, 4).
"""
import torch
from torch import nn

from ...errors import require_share
from ..seeding import seed_for
from .tuner import be_sparse, tuned


@torch.no_grad()
def dare(model: nn.Module, drop: float = 0.9, seed: int = 42, adapter_name: str = "default") -> None:
    """Change the trained weights of a selective method in place; from now on it is saved as a sparse difference.

    drop: p, from 0 up to, not including, 1. seed: each tensor draws from it and its own name.
    Raises PeftkitError for a drop out of range, or a model without a selective method.
    """
    require_share(drop=drop)
    for tensor in tuned(model, adapter_name):
        start, weight = tensor.start(), tensor.weight
        kept = torch.rand(weight.shape, generator=seed_for(seed, tensor.name)).to(weight.device) >= drop
        weight.copy_(torch.where(kept, start + (weight - start) / (1 - drop), start))
    be_sparse(model, adapter_name)
