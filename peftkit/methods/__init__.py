"""Methods: one file a PEFT method, and `inject` to put one on a model."""
from .inject import METHODS, inject, method_options, trainable_count
from .loading import load_adapter
from .prompt import leading_tokens
from .selective import rule_of
from .table import file_bytes, table
from .trainable import trainable_map

__all__ = ["METHODS", "file_bytes", "inject", "leading_tokens", "load_adapter", "method_options", "rule_of", "table", "trainable_count",
           "trainable_map"]
