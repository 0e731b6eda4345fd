"""All methods side by side."""
import pandas as pd

from .inject import METHODS


def table() -> pd.DataFrame:
    """One row a method: regions (that it trains), intrusive (changes what happens inside the language model's blocks),
    merges (folds into the base's weights), trainable (formula of the count, in words), refuses (model types), source.
    """
    rows = [{"method": method.name, "regions": ", ".join(method.regions), "intrusive": method.intrusive,
             "merges": method.merges, "trainable": method.formula, "refuses": ", ".join(method.refuses),
             "source": method.source} for method in METHODS.values()]
    return pd.DataFrame(rows).set_index("method")
