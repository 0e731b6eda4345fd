"""Methods: one file a PEFT method, and `inject` to put one on a model."""
from .inject import METHODS, inject, method_options, trainable_count
from .trainable import trainable_map

__all__ = ["METHODS", "inject", "method_options", "trainable_count", "trainable_map"]
