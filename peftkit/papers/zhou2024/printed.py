"""The paper's printed numbers."""
from pathlib import Path

import pandas as pd

from ...errors import choose

_TABLES = Path(__file__).parent / "tables"
METHODS = {"prefix": "prefix-peft"}  # the paper's name -> ours: it used peft's own prefix tuning


def printed_table(name: str) -> pd.DataFrame:
    """A printed table in long form, as printed ("table01_main", "table15_efficiency", ...), methods by our names.

    Suspected misprints are kept and said so in the column `note`. Raises PeftkitError for an unknown name.
    """
    names = sorted(path.stem for path in _TABLES.glob("*.csv"))
    table = pd.read_csv(_TABLES / f"{choose('table of zhou2024', name, names)}.csv")
    return table.replace({"method": METHODS}) if "method" in table else table


def unseen_and_seen(scores: pd.DataFrame, unseen: tuple[str, ...], seen: tuple[str, ...]) -> pd.DataFrame:
    """Group means as the paper forms them: U over the unseen tasks, S over the seen, Avg over all eight.

    scores: a row a configuration, a column a task. Returns the same rows with the columns U, S and Avg.
    """
    return pd.DataFrame({"U": scores[list(unseen)].mean(axis=1), "S": scores[list(seen)].mean(axis=1),
                         "Avg": scores[[*unseen, *seen]].mean(axis=1)})
