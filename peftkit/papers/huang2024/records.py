"""The records of the studies as one tidy frame, the paper's four measures, and what is left at equal target score."""
from collections.abc import Iterable
from functools import partial

import numpy as np
import pandas as pd

from ...errors import choose
from ...studies import Record
from ..records import records_of
from .study import CAPTIONS, COMPARED, PATHS_STUDY, SOURCES, STUDIES, TARGETS, TIERS, on_a_path, row_of, studies

INTEGERS = {"seed": "Int64", "layers": "Int64"}  # seed is empty for zero-shot, layers where all blocks are trained


def study_records(name: str, tier: str, runs: str = "committed") -> list[Record]:
    """The records of a study; `peftkit.papers.records.records_of` says which. Raises PeftkitError for unknown words and
    for records that are not there."""
    choose("study", name, STUDIES)
    choose("tier", tier, TIERS)
    return records_of(name, partial(studies, name, tier), tier, runs)


def every_run(tier: str = "laptop", runs: str = "committed") -> pd.DataFrame:
    """One tidy frame of all studies (see `tidy`)."""
    return tidy(record for name in STUDIES for record in study_records(name, tier, runs))


def measures(target: float, sources: Iterable[float]) -> dict[str, float]:
    """T, S (mean of the sources), H = 2 S T / (S + T), O = (S + T) / 2 (facts, section 3), all in [0, 1]."""
    sources = list(sources)
    mean = sum(sources) / len(sources)
    total = mean + target
    return {"T": target, "S": mean, "H": 2 * mean * target / total if total else 0.0, "O": total / 2}


def tidy(records: Iterable[Record]) -> pd.DataFrame:
    """A row a tested model, in the order of TARGETS; one of the main study that lies on a path has a second row with
    the paths' study. Columns: study, base, row, target, seed (empty for zero-shot), epoch, layers (empty where all are
    trained), T, S, H, O, a column a source, trainable (parameters), learning_rate, seconds (of training),
    smallest_share and largest_share (of entries that SPIDER selects, over tensors and epochs).

    Scores are in [0, 1]; of captions a tenth of CIDEr-D, so that no target drives the means by its scale.
    """
    frame = pd.DataFrame([row for record in records for row in _rows(record)]).astype(INTEGERS)
    return frame.sort_values("target", key=lambda names: names.map(TARGETS.index), kind="stable", ignore_index=True)


def _rows(record: Record) -> list[dict]:
    config, train, metrics = record.config, record.content["train_info"], record.content["metrics"]
    shares = [share for look in metrics["looks"] for share in look.get("selected", {}).values()]
    shared = {"base": config["base"], "seed": config["seed"], "target": config["task"],
              "layers": config["options"].get("layers"), "learning_rate": config["train"].get("learning_rate"),
              "trainable": train["num_trainable_params"], "seconds": train["train_time"],
              "smallest_share": min(shares, default=None), "largest_share": max(shares, default=None)}
    looks, last = [look for look in metrics["looks"] if config["task"] in look], metrics["looks"][-1]
    scored = [(PATHS_STUDY, row_of(config), look) for look in looks if on_a_path(config)]
    if config["study"] != PATHS_STUDY:
        afterwards = {row: {"epoch": last["epoch"]} | scores for row, scores in metrics["afterwards"].items()}
        scored += [(config["study"], row, look) for row, look in ({row_of(config): last} | afterwards).items()]
    return [{"study": study, "row": row, "epoch": look["epoch"], **shared, **{name: look[name] for name in SOURCES},
             **measures(look[config["task"]], (look[name] for name in SOURCES))} for study, row, look in scored]


def averages(frame: pd.DataFrame, base: str, scale: float = 1.0) -> pd.DataFrame:
    """T, S, H, O of every row in the mean of targets and seeds, in points; the highest O first.

    scale: of the captions' T before H and O are formed: 10 gives CIDEr x 100, presumably the paper's.
    """
    main = frame[frame["study"].isin(COMPARED) & (frame["base"] == base)]
    t = (main["T"] * np.where(main["target"].isin(CAPTIONS), scale, 1)).astype(float)
    scores = main.assign(T=t, H=2 * main["S"] * t / (main["S"] + t), O=(main["S"] + t) / 2)
    table = scores.groupby(["row", "target"])[["T", "S", "H", "O"]].mean().groupby("row").mean()
    return 100 * table.sort_values("O", ascending=False)


# ---- equal target score ---------------------------------------------------------------------------------------------

def source_at(level: float, path: pd.DataFrame) -> float | None:
    """S where a path first reaches T = level, on the straight line between two looks; None if it never does.

    path: T and S in the order of the looks, the untouched base first.
    """
    points = list(zip(path["T"], path["S"]))
    if points and points[0][0] >= level:
        return points[0][1]
    for (t, s), (later_t, later_s) in zip(points, points[1:]):
        if t < level <= later_t:
            return s + (later_s - s) * (level - t) / (later_t - t)
    return None


def equal_t(frame: pd.DataFrame, share: float = 1.0) -> pd.DataFrame:
    """What each row keeps of the sources at a target score that all rows reach: base, target, row, seed, T,
    learning_rate, S.

    frame: of `tidy`, with study huang2024-paths and the zero-shot row of the main study, where all paths start. The
    highest common T, of a base and target, is what every row reaches on all seeds at one of its rates; T lies `share`
    of the way there from the untouched base. Of the rates that reach it, a row gets the one that keeps most in the
    mean over seeds.
    """
    found = []
    paths = frame[frame["study"] == PATHS_STUDY]
    for (base, target), part in paths.groupby(["base", "target"], sort=False):
        start = frame[(frame["row"] == "zero-shot") & (frame["base"] == base) & (frame["target"] == target)].head(1)
        if start.empty:
            continue
        reached = part.pivot_table("T", ["row", "learning_rate"], "seed", "max").min(axis=1, skipna=False)
        top = reached.groupby("row").max().min()
        level = share * top + (1 - share) * min(start["T"].iloc[0], top)
        kept = [{"base": base, "target": target, "row": row, "seed": seed, "T": level, "learning_rate": rate,
                 "S": source_at(level, pd.concat([start, path.sort_values("epoch")]))}
                for (row, rate, seed), path in part.groupby(["row", "learning_rate", "seed"], sort=False)
                if reached[row, rate] >= level]
        kept = pd.DataFrame(kept)
        means = kept.groupby(["row", "learning_rate"])["S"].mean()
        best = {row: rates.idxmax()[1] for row, rates in means.groupby("row")}
        found.append(kept[kept["learning_rate"] == kept["row"].map(best)])
    columns = ["base", "target", "row", "seed", "T", "learning_rate", "S"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)
