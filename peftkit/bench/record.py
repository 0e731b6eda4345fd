"""Keeping what was measured, with when and where."""
import json
from datetime import date
from pathlib import Path

import pandas as pd

from ..studies.run import machine


def record(table: pd.DataFrame | pd.Series, path: Path) -> None:
    """Write a table as JSON with date, package versions and machine (threads and card among them)."""
    frame = table.to_frame("value") if isinstance(table, pd.Series) else table
    content = {"date": date.today().isoformat(), **machine(), "table": frame.reset_index().to_dict("records")}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(path)
