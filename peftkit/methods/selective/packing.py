"""A sparse difference between two tensors: one bit an entry says whether it differs, and the new values follow."""
import torch
from torch import Tensor

_PLACES = torch.arange(8, dtype=torch.uint8)


def pack(new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """bits (entries / 8, rounded up) uint8, lowest bit first, and values: the entries of `new` that differ."""
    differs = (new != old).flatten()
    padded = torch.zeros(-(-differs.numel() // 8) * 8, dtype=torch.uint8, device=new.device)
    padded[:differs.numel()] = differs
    bits = (padded.view(-1, 8) << _PLACES.to(new.device)).sum(1, dtype=torch.uint8)
    return bits, new.flatten()[differs]


def unpack(bits: Tensor, values: Tensor, old: Tensor) -> Tensor:
    """The tensor that `pack` was given as `new`."""
    differs = (bits[:, None] >> _PLACES.to(bits.device) & 1).flatten()[:old.numel()].bool().to(old.device)
    new = old.flatten().clone()
    new[differs] = values.to(new)
    return new.view(old.shape)
