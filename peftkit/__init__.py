"""peftkit: learn and check parameter-efficient fine-tuning of multimodal models.

The public functions load on first use, so that `import peftkit` stays fast. peft learns the methods of this package as
soon as it is imported itself, so that it can load their adapters.
"""
from importlib import import_module

from .announce import announce_to_peft

__version__ = "0.1.0"

_HOMES = {
    "load": "models",
    "inject": "methods",
    "load_adapter": "methods",
    "trainable_map": "methods",
    "task": "data",
    "gallery": "data",
    "train": "training",
    "TrainConfig": "training",
    "evaluate": "evaluation",
    "Study": "studies",
    "claims": "papers.claims",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'peftkit' has no attribute {name!r}")
    return getattr(import_module(f"peftkit.{_HOMES[name]}"), name)


def __dir__():
    return sorted(__all__)


announce_to_peft()
