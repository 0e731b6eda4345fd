"""The frozen vision tower, run once: its output is kept, the connector is applied to it in every step."""
import torch
from torch import nn

from ..data.collate import Encoded
from ..models.regions import architecture, region_of
from .towers import TOWERS, unwrap

BATCH = 128
BUDGET = 4e9  # bytes of features that are kept in memory; larger sets are encoded in every step


def can_cache(model: nn.Module) -> bool:
    """Whether the model type is supported and its vision tower is frozen."""
    arch = architecture(model)
    tower_trains = any(p.requires_grad for name, p in model.named_parameters() if region_of(arch, name) == "vision")
    return model.config.model_type in TOWERS and not tower_trains


def cache_features(model: nn.Module, encoded: Encoded) -> Encoded:
    """Fill `encoded.features`, in place, unless the set is too large; model: any, wrapped by peft or not."""
    base = unwrap(model)
    tower = TOWERS[base.config.model_type]
    device = next(base.parameters()).device
    parts = []
    with torch.no_grad():
        for start in range(0, len(encoded), BATCH):
            pictures = {name: value[start:start + BATCH].to(device) for name, value in encoded.pictures.items()}
            parts.append(tower(base, pictures).cpu())
            if parts[0].nbytes * len(encoded) / len(parts[0]) > BUDGET:
                return encoded
    encoded.features = torch.cat(parts)
    return encoded
