"""The records of the studies, and the tidy frame that claims and figures read."""
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pandas as pd

from ...errors import choose
from ...studies import Record, RunStore, Study, tabulate
from ..records import records_of
from .study import TIERS, main_study
from .varied import SOURCES, VARIED, varied_studies

MAIN = "zhou2024"
STUDIES = (MAIN, *VARIED)
PAST = 4  # epochs past the lowest loss on held-out examples (Table 4)


def studies(name: str, tier: str, store: RunStore | str | Path) -> list[Study]:
    """The grids of a study. Raises PeftkitError for an unknown study or tier."""
    choose("study", name, STUDIES)
    return main_study(tier, store) if name == MAIN else varied_studies(name, tier, store)


def study_records(name: str, tier: str, runs: str = "committed") -> list[Record]:
    """The records of a study; `peftkit.papers.records.records_of` says which. Raises PeftkitError for unknown words and
    for records that are not there."""
    choose("study", name, STUDIES)
    choose("tier", tier, TIERS)
    return records_of(name, partial(studies, name, tier), tier, runs)


def main_records(tier: str, runs: str = "committed") -> list[Record]:
    """The records of the main study (see `study_records`)."""
    return study_records(MAIN, tier, runs)


def every_run(tier: str = "laptop", runs: str = "committed") -> pd.DataFrame:
    """One tidy frame of all studies (see `tidy`)."""
    return tidy(record for name in STUDIES for record in study_records(name, tier, runs))


def tidy(records: Iterable[Record]) -> pd.DataFrame:
    """A row a score, as the claims ask for it: `peftkit.studies.tabulate`, and the looks of watched runs as rows.

    Study zhou2024-transfer: task "source>target", epoch 1 to 4 after the lowest loss on held-out examples;
    zhou2024-captions: task "hallucinated", epoch 3, 6, 9, 12; zhou2024-hallucination: tasks "truth" and
    "hallucinated", tuned_on; all scores in [0, 1].
    """
    plain, watched = [], []
    for record in records:
        (watched if "epochs" in record.content["metrics"] else plain).append(record)
    rows = pd.DataFrame([row for record in watched for row in _looks(record)])
    parts = [tabulate(plain), rows.astype({"seed": "Int64"} if len(rows) else {})]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def looks(records: Iterable[Record]) -> pd.DataFrame:
    """Every look at watched runs, one row an epoch: study, base, method, task, seed, and what was measured then."""
    names = ("study", "base", "method", "task", "seed")
    return pd.DataFrame([{**{name: record.config[name] for name in names}, **row}
                         for record in records for row in record.content["metrics"]["epochs"]])


def past_the_minimum(epochs: list[dict]) -> list[dict]:
    """The four rows after the one with the lowest loss; that one is sought where four are left after it."""
    losses = [row["loss"] for row in epochs[:-PAST]]
    best = losses.index(min(losses))
    return epochs[best + 1:best + 1 + PAST]


def _looks(record: Record) -> list[dict]:
    row, config, epochs = record.row(), record.config, record.content["metrics"]["epochs"]
    if config["study"].endswith("hallucination"):
        return [row | {"task": name, "tuned_on": config["task"], "score": epochs[-1][name]}
                for name in ("truth", "hallucinated")]
    after = past_the_minimum(epochs) if len(epochs) > PAST else []
    targets = [name for name in SOURCES if name != config["task"]]
    found = [row | {"task": f"{config['task']}>{name}", "epoch": number, "score": look[name]}
             for number, look in enumerate(after, start=1) for name in targets]
    if config["task"] == "iconqa_txt":  # what Table 7's models were tuned on
        found += [row | {"study": "zhou2024-captions", "task": "hallucinated", "epoch": look["epoch"],
                         "score": look["hallucinated"]} for look in epochs if "hallucinated" in look]
    return found
