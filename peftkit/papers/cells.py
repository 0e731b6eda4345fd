"""Scores by cell and seed: the one shape in which printed tables and records meet the claims."""
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import pandas as pd

from ..errors import PeftkitError


class Cell(NamedTuple):
    """One place of a paper's tables; `setting` is the level of what the study varies, None in a main table."""

    study: str
    model: str
    method: str
    connector: str
    task: str
    setting: str | None = None


class Cells:
    """Answers with mean scores, and remembers what was asked and what is missing.

    frame: the columns of `Cell`, `seed`, and values such as `score`. models: those that this side should have, by the
    paper's names; others are left out of every mean. printed: the numbers have no seeds. names: our words for models.
    Raises PeftkitError for two scores of one cell and seed.
    """

    def __init__(self, frame: pd.DataFrame, models: Sequence[str], printed: bool = False,
                 names: Mapping[str, str] | None = None):
        self.models, self.printed, self.names = tuple(models), printed, dict(names or {})
        self.asked: list[Cell] = []
        self.missing: list[tuple[Cell, object]] = []  # with its seed, None where no run of the cell is there
        self._rows: dict[Cell, dict] = {}  # of every cell, its values by seed
        self._seeds: dict[tuple, dict] = {}  # of every study and model, the seeds that any cell has
        keys = frame[list(Cell._fields)].astype(object)
        cells = keys.where(keys.notna(), None).itertuples(index=False, name=None)
        for cell, row in zip(cells, frame.drop(columns=list(Cell._fields)).to_dict("records")):
            runs = self._rows.setdefault(Cell(*cell), {})
            if row["seed"] in runs:
                raise PeftkitError(f"two scores of seed {row['seed']} for {', '.join(map(str, filter(None, cell)))}")
            runs[row["seed"]] = row
            self._seeds.setdefault(cell[:2], {})[row["seed"]] = None

    def mean(self, study: str, model, method, connector, task, setting=None, value: str = "score") -> pd.Series:
        """The mean over all cells named, by seed. Each argument but `value` is a name or a tuple; all weigh the same.

        Only seeds that all these cells have are kept. A cell without some seed of its study and model is noted as
        missing.
        """
        models = tuple(name for name in listed(model) if name in self.models)
        cells = product(*map(listed, (study, models, method, connector, task, setting)))
        columns = [column for names in cells if len(column := self._column(Cell(*names), value))]
        return pd.concat(columns, axis=1, join="inner").mean(axis=1) if columns else pd.Series(dtype=float)

    def forget(self) -> None:
        """Forget what was asked and missing."""
        self.asked.clear()
        self.missing.clear()

    def missing_runs(self) -> str:
        """The missing runs in words: study by study, each column as a list of what occurs in it."""
        texts = []
        for study in dict.fromkeys(cell.study for cell, _ in self.missing):
            runs = dict.fromkeys((*cell[1:], seed) for cell, seed in self.missing if cell.study == study)
            columns = [dict.fromkeys(str(part) for part in column if part is not None) for column in zip(*runs)]
            parts = [f"{name} {', '.join(words)}" for name, words in zip((*Cell._fields[1:], "seed"), columns) if words]
            texts.append(f"study {study}, {len(runs)} cell{'s' * (len(runs) > 1)}: " + "; ".join(parts))
        return self.say(" | ".join(texts))

    def say(self, text: str) -> str:
        """The text with this side's names of the models."""
        for name, ours in self.names.items():
            text = text.replace(name, ours)
        return text

    def _column(self, cell: Cell, value: str) -> pd.Series:
        self.asked.append(cell)
        found = {seed: row[value] for seed, row in self._rows.get(cell, {}).items() if pd.notna(row["score"])}
        expected = self._seeds[cell[:2]] if found else [None]
        self.missing += [(cell, seed) for seed in expected if seed not in found]
        return pd.Series(found, dtype=float)


def require_columns(runs: pd.DataFrame, needed: Sequence[str]) -> None:
    """Raise PeftkitError for runs that lack a column, with all that are needed."""
    if lacking := [column for column in needed if column not in runs]:
        raise PeftkitError(f"runs lack the columns {', '.join(lacking)}; needed: {', '.join(needed)}")


def listed(part) -> tuple:
    """A name alone, or a tuple of names, as a tuple."""
    return part if isinstance(part, tuple) else (part,)
