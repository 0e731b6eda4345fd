"""Our records in the shape that the claims ask (`peftkit.papers.cells.Cells`); the paper's numbers are not known.

model is the base, method the row, task the target; values T (also `score`), S, H, O in points, smallest_share and
largest_share as shares. Study huang2024-paths holds T and S where all rows have equal T (see `equal_t`), a setting for
each of LEVELS.
"""
import pandas as pd

from ...errors import choose
from ..cells import Cell, Cells, require_columns
from ..tidy import read_names
from .records import INTEGERS, equal_t
from .study import (
    AFTERWARDS, BASE, COMPARED, LARGER, LEVELS, PATHS_STUDY, RELEASED, RESAMPLER, ROWS, STUDIES, TARGETS)

BASES = (BASE, LARGER, RESAMPLER)
ALL_ROWS = (*ROWS, RELEASED, *AFTERWARDS)
NAMES = {"study": tuple(STUDIES), "base": BASES, "row": ALL_ROWS, "target": TARGETS}
POINTS = ("T", "S", "H", "O")
SHARES = ("smallest_share", "largest_share")
NEEDED = (*NAMES, "seed", "epoch", "learning_rate", *POINTS, *SHARES)


def our_cells(frame: pd.DataFrame) -> Cells:
    """Cells of a frame of `tidy`. The untouched base, which has no seeds, stands beside every seed of its base.

    Raises PeftkitError for columns that are missing and for a study, base, row or target that the claims do not know.
    """
    require_columns(frame, NEEDED)
    for column, accepted in NAMES.items():
        for name in frame[column].unique():
            choose(column, name, accepted)
    main = frame[frame["study"].isin(COMPARED)]
    untrained = main["row"] == "zero-shot"
    seeds = main[~untrained][["base", "seed"]].drop_duplicates()
    zero_shot = main[untrained].drop(columns="seed").merge(seeds, on="base")
    equal = [equal_t(frame, level).assign(study=PATHS_STUDY, setting=level) for level in LEVELS]
    runs = pd.concat([main[~untrained], zero_shot, *equal], ignore_index=True)
    runs = runs.assign(model=runs["base"], method=runs["row"], task=runs["target"], connector="tuned",
                       score=runs["T"], **{name: 100 * runs[name].astype(float) for name in POINTS})
    return Cells(runs[[*Cell._fields, "seed", "score", *POINTS, *SHARES]], BASES)


def read_runs(path) -> pd.DataFrame:
    """Runs from a tidy CSV with the columns of `tidy`; unknown names are refused with file and line."""
    runs = read_names(path, NAMES)
    return runs.astype({column: kind for column, kind in INTEGERS.items() if column in runs})
