"""Tidy frames: read with checked names; means over seeds with intervals, for drawing."""
import csv
from collections.abc import Sequence
from math import nan
from pathlib import Path

import pandas as pd

from ..errors import PeftkitError, choose
from ..stats import mean_interval

MEAN = "mean"  # in column `row`; other rows are single seeds


def read_names(path: str | Path, accepted: dict[str, tuple[str, ...]]) -> pd.DataFrame:
    """A tidy CSV whose columns in `accepted` hold those names only (columns it lacks are not asked for).

    Raises PeftkitError that tells file, line and the accepted names, or that there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise PeftkitError(f"no file {path}")
    with path.open(newline="", encoding="utf-8") as file:
        for row in (reader := csv.DictReader(file)):
            for column in accepted.keys() & row.keys():
                try:
                    choose(column, row[column], accepted[column])
                except PeftkitError as error:
                    raise PeftkitError(f"{path.name}, line {reader.line_num}: {error}") from None
    return pd.read_csv(path)


def over_seeds(rows: pd.DataFrame, by: Sequence[str], value: str = "score") -> pd.DataFrame:
    """Mean of `value` over all rows of each group, then the rows' means by seed.

    Columns: by, row ("mean" or the seed), score, low, high. low and high: 95 % Student-t interval over seeds; empty
    for single seeds and where there is one only.
    """
    by, found = list(by), []
    for keys, part in rows.groupby(by, sort=False, dropna=False):
        seeds = part.groupby("seed", dropna=False)[value].mean().dropna()
        interval = mean_interval(seeds) if len(seeds) > 1 else None
        found.append((*keys, MEAN, seeds.mean(), *((interval.low, interval.high) if interval else (nan, nan))))
        found += [(*keys, str(seed), score, nan, nan) for seed, score in seeds.items()]
    return pd.DataFrame(found, columns=[*by, "row", "score", "low", "high"]).astype({"score": float})
