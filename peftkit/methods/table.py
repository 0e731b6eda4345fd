"""All methods side by side, and how large their files are."""
import pandas as pd
from torch import nn

from ..errors import choose
from .inject import METHODS, method_options, trainable_count


def table() -> pd.DataFrame:
    """One row a method: regions (that it trains), intrusive (changes what happens inside the language model's blocks),
    merges (folds into the base's weights), trainable (formula of the count, in words), refuses (model types), source.
    """
    rows = [{"method": method.name, "regions": ", ".join(method.regions), "intrusive": method.intrusive,
             "merges": method.merges, "trainable": method.formula, "refuses": ", ".join(method.refuses),
             "source": method.source} for method in METHODS.values()]
    return pd.DataFrame(rows).set_index("method")


def file_bytes(model: nn.Module, method: str, **options) -> int:
    """Bytes of the tensors that `save_pretrained` writes for a method with a frozen connector, in float32.

    model: a base, on the meta device if it is large. Where only changed entries are saved (SPIDER, masks, half
    fine-tuning) half of them are taken to have changed: 4 bytes each, and one bit for every entry.
    """
    count = trainable_count(model, method, **options)
    config = METHODS[choose("method", method, METHODS)].peft_config(model, method_options(method, options))
    return -(-count // 8) + 2 * count if getattr(config, "sparse", False) else 4 * count
