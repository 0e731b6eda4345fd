"""Random numbers that depend on a seed and a name only, so that adding a module does not change another's start."""
import hashlib

import torch


def seed_for(seed: int, name: str) -> torch.Generator:
    """A random generator for the parameter of this name."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
