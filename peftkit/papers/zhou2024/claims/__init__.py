"""What Zhou et al. 2024 claim, as code: A best method, B connector, C unseen and seen, D location, E data, F size, rate
and stability, G transfer, H hallucination, I vision tower, J trainable share.
"""
from pathlib import Path

import pandas as pd

from ... import claims
from ..cells import our_cells, printed_cells, read_runs
from ..records import every_run
from . import behavior, main_table, settings

CLAIMS = {claim.id: claim for group in (main_table, settings, behavior) for claim in group.CLAIMS}


def ledger(runs: pd.DataFrame | str | Path | None = None) -> pd.DataFrame:
    """One row a claim, on the printed tables and on `runs`: a tidy frame, a CSV file, or the committed records."""
    if runs is None:
        runs = every_run()
    elif not isinstance(runs, pd.DataFrame):
        runs = read_runs(runs)
    return claims.ledger(CLAIMS.values(), printed_cells(), printed_cells(corrected=True), our_cells(runs))
