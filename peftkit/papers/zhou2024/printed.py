"""The paper's printed numbers."""
from pathlib import Path

import pandas as pd

from ...errors import choose
from ..tidy import read_names

_TABLES = Path(__file__).parent / "tables"
METHODS = {"prefix": "prefix-peft"}  # the paper's name -> ours: it used peft's own prefix tuning
DATASETS = ("scienceqa_img", "vizwiz", "iconqa_txt", "iconqa_blank", "flickr30k", "okvqa", "ocrvqa", "vqav2", "avg")
NAMES = {  # what the naming columns of a printed table may hold
    "model": ("llava_1.5_7b", "llava_1.5_13b", "sharegpt4v_7b", "qwen_vl_chat", "all"),
    "method": ("lora", "adapter", "ia3", "prefix", "all"), "connector": ("frozen", "tuned"),
    **dict.fromkeys(("dataset", "source_dataset", "target_dataset", "tuned_on"), DATASETS)}


def printed_table(name: str) -> pd.DataFrame:
    """A printed table in long form, as printed ("table01_main", "table15_efficiency", ...), methods by our names.

    Misprints are kept: the column `misprint` says "suspected", or "affected" for an average of one, `corrected` holds
    the value that is probably right where it is known, and `note` the reason. Raises PeftkitError for an unknown name.
    """
    names = sorted(path.stem for path in _TABLES.glob("*.csv"))
    table = read_names(_TABLES / f"{choose('table of zhou2024', name, names)}.csv", NAMES)
    return table.replace({"method": METHODS}) if "method" in table else table


def unseen_and_seen(scores: pd.DataFrame, unseen: tuple[str, ...], seen: tuple[str, ...]) -> pd.DataFrame:
    """Group means as the paper forms them: U over the unseen tasks, S over the seen, Avg over all eight.

    scores: a row a configuration, a column a task. Returns the same rows with the columns U, S and Avg.
    """
    return pd.DataFrame({"U": scores[list(unseen)].mean(axis=1), "S": scores[list(seen)].mean(axis=1),
                         "Avg": scores[[*unseen, *seen]].mean(axis=1)})
