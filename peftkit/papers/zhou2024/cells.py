"""Both sides in the one shape that the claims ask (`peftkit.papers.cells.Cells`): printed tables and our records.

Models have the paper's names on both sides; ours are those that our bases stand for (`COUNTERPARTS`). Scores are in
points, 0 to 100. `spread` is the standard deviation over seeds: as printed; on records, where a claim needs one number
a seed, |score - mean over seeds| scaled so that its expectation is the standard deviation (Levene's way).

What a study varies becomes `setting`, such as "placement both". Sizes, learning rates and numbers of training examples
are ranked, as ours are other numbers than the paper's: "size 1" is the smallest.
"""
import math
from functools import cache
from itertools import permutations

import pandas as pd

from ...errors import PeftkitError, choose
from ..cells import Cell, Cells, require_columns
from ..tidy import read_names
from .printed import NAMES, printed_table
from .shares import LANGUAGE, paper_shares
from .study import FULL, SEEN, SIZES, UNSEEN
from .tables import COUNTERPARTS, DATASETS, MODELS, UNTRAINED

SETTINGS = {  # study -> the column of a record that it varies
    "zhou2024": None, "zhou2024-location": "placement", "zhou2024-data": "train_size", "zhou2024-size": "size",
    "zhou2024-rates": "learning_rate", "zhou2024-vision": "vision", "zhou2024-transfer": "epoch",
    "zhou2024-hallucination": "tuned_on", "zhou2024-captions": "epoch", "zhou2024-shares": None,
    "zhou2024-vocabulary": "connector_learning_rate"}
RANKED = ("train_size", "size", "learning_rate")
SHARED = ("placement", "vision", *RANKED)  # a main run is one of the levels
# what the main study has
USUAL = {"placement": {"lora": "both", "ia3": "both", "adapter": "mlp"}, "vision": dict.fromkeys(SIZES, "frozen")}
PRINTED = {  # table -> the study that runs it again
    "table01_main": "zhou2024", "table02_location_llava7b": "zhou2024-location",
    "table13_location_qwen": "zhou2024-location", "table03_data_scale": "zhou2024-data",
    "table06_size_stability": "zhou2024-size", "table14_lr_stability": "zhou2024-rates",
    "table12_vision_encoder": "zhou2024-vision", "table04_overfit_transfer": "zhou2024-transfer",
    "table05_mmhal": "zhou2024-hallucination", "table07_manual_hallucination": "zhou2024-captions",
    "table15_efficiency": "zhou2024-shares"}
RENAMED = {  # column of a printed table -> of a record
    "value": "score", "mean": "score", "std": "spread", "dataset": "task", "location": "placement",
    "train_examples": "train_size", "vision_encoder": "vision", "overfit_epoch": "epoch"}
SCALES = {"mmhal_score": 100 / 6, "hallucination_rate": 100.0}  # to points
MEASURES = {"mmhal_score": "truth", "hallucination_rate": "hallucinated", "hallucinated_outputs_of_100": "hallucinated",
            "trainable_percent": "trainable_percent"}  # metric -> "task" of tables without a dataset
DEFAULT_SIZES = {"adapter": "size 4", "lora": "size 4", "prefix-peft": "size 2"}  # of Table 1, in Table 6
PAIRS = tuple(">".join(pair) for pair in permutations(("iconqa_txt", "scienceqa", "vizwiz"), 2))  # source > target
NEEDED = ("study", "base", "method", "connector", "task", "seed", "score")


def printed_cells(corrected: bool = False) -> Cells:
    """All printed tables; corrected: suspected misprints replaced where the right value is known."""
    parts = [_with_setting(printed_experiment(study, corrected), study) for study in dict.fromkeys(PRINTED.values())]
    frame = pd.concat(parts).reindex(columns=[*Cell._fields, "seed", "score", "spread"])
    sizes = frame[(frame["study"] == "zhou2024-size") & (frame["setting"] == frame["method"].map(DEFAULT_SIZES))]
    key = ["model", "method", "connector", "task"]  # Table 6 has the spread of configurations of Table 1
    spreads = sizes.assign(study="zhou2024")[["study", *key, "spread"]]
    frame = frame.merge(spreads, on=["study", *key], how="left", suffixes=("", "_of_size"))
    frame["spread"] = frame["spread"].fillna(frame.pop("spread_of_size"))
    return Cells(frame, tuple(MODELS), printed=True)


def our_cells(frame: pd.DataFrame) -> Cells:
    """Records, a row a run, with the columns study, base, method, connector, task, seed, score and what a study varies.

    frame: of `peftkit.studies.tabulate`. Shares of parameters are counted, not read. Raises PeftkitError for a base or
    study that the claims do not know.
    """
    require_columns(frame, NEEDED)
    runs = frame[frame["method"].isin(SIZES)].reset_index(drop=True)
    models = {base: COUNTERPARTS[choose("base", base, COUNTERPARTS)] for base in runs["base"].unique()}
    runs = runs.assign(model=runs["base"].map(models), score=100 * runs["score"])
    parts = [_with_setting(experiment(runs, study), study) for study in sorted(runs["study"].unique())]
    ran = pd.concat(parts)[[*Cell._fields, "seed", "score"]]
    by_cell = ran.groupby(list(Cell._fields), dropna=False)["score"]
    seeds = by_cell.transform("count")
    scale = (math.pi / 2 * seeds / (seeds - 1).where(seeds > 1)) ** 0.5
    ran["spread"] = (ran["score"] - by_cell.transform("mean")).abs() * scale
    return Cells(pd.concat([ran, _counted()]), tuple(COUNTERPARTS.values()),
                 names={model: base for base, model in COUNTERPARTS.items()})


def experiment(frame: pd.DataFrame, study: str) -> pd.DataFrame:
    """One experiment's complete grid: its own runs, and those of the main study where what it varies is as usual.

    frame: of `peftkit.papers.zhou2024.tidy`, or other runs with the columns that `our_cells` wants. The column `level`
    holds what the experiment varies (`SETTINGS`), empty for the main study. Raises PeftkitError for an unknown study
    and for runs that lack the column that it varies.
    """
    varied = SETTINGS[choose("study", study, SETTINGS)]
    runs = _with_usual(frame)
    part = runs[runs["study"] == study]
    if varied is None:
        return part.assign(level=None)
    if varied not in runs:
        raise PeftkitError(f"runs of study {study} lack the column {varied}")
    if varied in SHARED:
        places = part[["base", "method", "connector", "task"]].drop_duplicates()
        main = runs[runs["study"] == "zhou2024"].merge(places).dropna(subset=varied)
        part = pd.concat([part, main.assign(study=study)], ignore_index=True)
    return part.assign(level=part[varied])


def printed_experiment(study: str, corrected: bool = False) -> pd.DataFrame:
    """The paper's side of `experiment`: its printed single scores in points, `level` in the paper's own numbers.

    corrected: as in `printed_cells`. Raises PeftkitError for a study that no printed table shows.
    """
    choose("study", study, tuple(dict.fromkeys(PRINTED.values())))
    frame = pd.concat([_printed(table, corrected) for table, of in PRINTED.items() if of == study], ignore_index=True)
    return frame.assign(study=study, level=frame.get(SETTINGS[study]))


def read_runs(path) -> pd.DataFrame:
    """Runs from a tidy CSV with the columns that `our_cells` wants; unknown names are refused with file and line."""
    return read_names(path, {
        "study": tuple(SETTINGS), "base": tuple(COUNTERPARTS), "method": (UNTRAINED, *SIZES, *FULL),
        "connector": (*NAMES["connector"], ""), "task": (*UNSEEN, *SEEN, *PAIRS, *MEASURES.values())})


def _printed(table: str, corrected: bool) -> pd.DataFrame:
    frame = printed_table(table).rename(columns=RENAMED)
    if corrected:
        frame["score"] = frame["corrected"].fillna(frame["score"])
    frame["score"] = frame["score"].astype(float) * frame["metric"].map(SCALES).fillna(1.0)
    if "question_type" in frame:
        frame = frame[frame["question_type"] == "overall"]
    frame = frame.replace({"attn": "attention", **DATASETS})
    if "source_dataset" in frame:
        frame["task"] = frame["source_dataset"] + ">" + frame["target_dataset"]
    elif "task" not in frame:
        frame["task"] = frame["metric"].map(MEASURES)  # other metrics become empty and are dropped
    averages = frame[[name for name in ("task", "epoch") if name in frame]].isin(["avg", "avg>avg"]).any(axis=1)
    frame = frame[~averages & frame["task"].notna()]
    frame = frame.astype({"epoch": int} if "epoch" in frame else {})
    return frame.assign(seed="printed", connector=frame.get("connector", "tuned"))


def _with_setting(frame: pd.DataFrame, study: str) -> pd.DataFrame:
    varied = SETTINGS[study]
    if varied is None:
        return frame.assign(setting=None)
    levels = frame[varied]
    if varied in RANKED:
        levels = frame.groupby(["model", "method"])[varied].rank(method="dense").astype(int)
    elif varied == "epoch":
        levels = levels.astype(int)  # beside studies without epochs they are floats
    return frame.assign(setting=varied + " " + levels.astype(str))


def _with_usual(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with their `size`, and what is usual where a run does not say it (`USUAL`)."""
    sizes = [option for options in SIZES.values() for option in options if option in runs]
    runs = runs.assign(size=runs[sizes].bfill(axis=1).iloc[:, 0] if sizes else None)
    return runs.assign(**{column: runs[column].fillna(runs["method"].map(usual))
                          for column, usual in USUAL.items() if column in runs})


@cache
def _counted() -> pd.DataFrame:
    """Table 15's trainable shares from injected modules, without weights: exact, so there is one "seed"."""
    counted = [paper_shares(name).assign(model=name) for name in LANGUAGE]
    shares = pd.concat(counted).melt(["model", "method"], ["frozen", "tuned"], "connector", "score")
    return shares.assign(study="zhou2024-shares", task="trainable_percent", setting=None, seed="counted")
