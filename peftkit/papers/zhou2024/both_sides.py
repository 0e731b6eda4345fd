"""Both sides of an experiment as tidy numbers: the paper's printed ones and our records. Scores in points, 0 to 100.

Seeds frame (`seed_scores`): columns side ("paper" or "ours"), method, level (what is varied, in its own numbers), seed
("printed" for the paper), group, score: the mean over the tasks of a group. Everything else is made from it.
"""
from collections.abc import Mapping
from math import sqrt

import pandas as pd
from scipy.special import chdtri, stdtrit  # quantiles of chi-square (from above) and of Student's t

from ...stats import Interval, equivalence, seeds_to_resolve
from .cells import experiment, printed_experiment
from .plots import LINES
from .study import CONNECTOR_RATE, SIZES
from .tables import COUNTERPARTS
from .varied import RESAMPLER

PAPER_SEEDS = 3  # of Tables 6 and 14, which print a standard deviation
KEYS = ["side", "method", "seed", "group"]
STEPS = ("small to medium", "medium to large")
FROZEN, CONNECTOR, VOCABULARY = "frozen", "connector", ("vocabulary, method's rate", "vocabulary, connector's rate")
PRINTED = "paper: tuned"
ORDER = {method: place for place, method in enumerate((*LINES, *SIZES))}


def seed_scores(frame: pd.DataFrame, study: str, base: str, groups: Mapping[str, tuple[str, ...]],
                corrected: bool = False) -> pd.DataFrame:
    """Both sides of an experiment on `base` and the paper's model that it stands for, as a seeds frame.

    frame: of `peftkit.papers.zhou2024.tidy`. groups: name -> tasks; of a group only the tasks that the side has count
    (in the smoke tier we have one). corrected: suspected misprints of the paper replaced.
    """
    ours = experiment(frame[frame["method"].isin(SIZES)], study).query("base == @base")
    printed = printed_experiment(study, corrected)
    sides = {"paper": printed[printed["model"] == COUNTERPARTS[base]], "ours": ours.assign(score=100 * ours["score"])}
    return pd.concat([_group_means(runs, groups).assign(side=side) for side, runs in sides.items()], ignore_index=True)


def levels(frame: pd.DataFrame, study: str, base: str, groups: Mapping[str, tuple[str, ...]]) -> pd.DataFrame:
    """Mean, 95 % t interval, sd and number of seeds of every level: side, method, level, group, score, low, ..., n.

    Where the paper prints a standard deviation, its interval is that of three seeds. Our untouched base and our full
    fine-tuning on the same tasks are rows without a level.
    """
    data = summarize(seed_scores(frame, study, base, groups))
    printed = printed_experiment(study)
    if "spread" in printed:
        spreads = printed.rename(columns={"task": "group"})[["method", "level", "group", "spread"]].assign(side="paper")
        data = data.merge(spreads, how="left")
        known = data["spread"].notna()
        data.loc[known, "sd"], data.loc[known, "n"] = data.loc[known, "spread"], PAPER_SEEDS
        data = _with_interval(data.drop(columns="spread"))
    return pd.concat([data, references(frame, base, groups)], ignore_index=True)


def references(frame: pd.DataFrame, base: str, groups: Mapping[str, tuple[str, ...]]) -> pd.DataFrame:
    """The main study's untouched base and full fine-tuning as rows of `summarize`, in the groups whose tasks it has."""
    main = frame[(frame["study"] == "zhou2024") & (frame["base"] == base) & frame["method"].isin(LINES)]
    runs = main.assign(level="", seed=main["seed"].fillna(0), score=100 * main["score"])
    whole = {name: tasks for name, tasks in groups.items() if set(tasks) <= set(main["task"])}
    return summarize(_group_means(runs, whole).assign(side="ours").drop(columns="level"))


def summarize(seeds: pd.DataFrame) -> pd.DataFrame:
    """The rows of a seeds frame over its seeds: score is the mean, low and high its 95 % t interval, sd, n.

    One seed has neither interval nor sd.
    """
    keys = [key for key in ("side", "method", "rates", "level", "group") if key in seeds]
    found = seeds.groupby(keys, sort=False)["score"].agg(score="mean", sd="std", n="count").reset_index()
    return _with_interval(found)


def changes(seeds: pd.DataFrame, usual: Mapping[str, object]) -> pd.DataFrame:
    """Every level minus the usual one, paired by seed: as `summarize`, `score` being the change.

    usual: method -> the level that others are compared with.
    """
    is_usual = seeds["level"] == seeds["method"].map(usual)
    pairs = seeds[~is_usual].merge(seeds[is_usual].drop(columns="level"), on=KEYS, suffixes=("", " usual"))
    return summarize(pairs.assign(score=pairs["score"] - pairs["score usual"]))


def equivalences(found: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Is a change within ± margin? Two one-sided tests on the rows of `changes` that have seeds, one row each.

    Columns method, change, low, high (90 % interval, which decides at error rate 0.05), equivalent; smallest: the
    margin that these seeds would have just resolved; seeds: how many would resolve `margin` (80 % power), None if the
    change lies on it.
    """
    rows = []
    for row in found[found["n"] > 1].itertuples():
        test = equivalence(Interval(row.score, row.low, row.high, row.n, row.sd), margin)
        rows.append({"method": row.method, "change": row.score, "low": test.low, "high": test.high,
                     "equivalent": test.equivalent, "smallest": max(abs(test.low), abs(test.high)),
                     "seeds": seeds_to_resolve(row.score, row.sd, margin)})
    return pd.DataFrame(rows, columns=["method", "change", "low", "high", "equivalent", "smallest", "seeds"])


def relative_gains(seeds: pd.DataFrame) -> pd.DataFrame:
    """What each step to more training examples adds, in percent of the score before it (Figure 6): as `summarize`,
    `level` being the step."""
    ordered = seeds.sort_values("level")
    runs = ordered.groupby(KEYS)
    step = runs.cumcount().map(dict(enumerate(STEPS, start=1)))
    gains = ordered.assign(score=100 * runs["score"].pct_change(), level=step).dropna(subset="level")
    return summarize(gains.sort_values(["side", "method"], ascending=[False, True], kind="stable",
                                       key=lambda names: names.map(ORDER) if names.name == "method" else names))


def sd_interval(sd: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the true standard deviation, from that of n normal draws: sd · √((n − 1) / χ²).

    At three draws it reaches from half to six times the sd, at seven from 0.6 to 2.2 times.
    """
    tail = (1 - confidence) / 2
    return tuple(sd * sqrt((n - 1) / chdtri(n - 1, share)) for share in (tail, 1 - tail))


def spreads(data: pd.DataFrame) -> pd.DataFrame:
    """`levels` with the standard deviation in the place of the score, and its own 95 % interval (`sd_interval`)."""
    known = data[data["sd"].notna() & data["level"].notna()]
    bounds = [sd_interval(row.sd, row.n) for row in known.itertuples()]
    low, high = zip(*bounds) if bounds else ((), ())
    return known.assign(score=known["sd"], low=list(low), high=list(high))


def ranked(data: pd.DataFrame) -> pd.DataFrame:
    """`levels` with the levels of each side and method as 1, 2, ... from the smallest; their numbers are in `size`."""
    ranks = data.groupby(["side", "method"])["level"].rank(method="dense")
    return data.assign(size=data["level"], level=ranks)


def marked(data: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """`levels` of rates with the column `choice`: which of the choices (of `rates.choices`) a point is, or none."""
    words = chosen.groupby(["side", "method", "level"])["rates"].agg(lambda found: ", ".join(found.unique()))
    return data.merge(words.rename("choice").reset_index(), how="left").fillna({"choice": ""})


def switch_scores(frame: pd.DataFrame, groups: Mapping[str, tuple[str, ...]]) -> pd.DataFrame:
    """What the connector switch of Qwen-VL-Chat may have trained, on the base with a resampler: a seeds frame.

    Levels: "frozen", "connector", and embedding with head at the method's rate (as in the released code) or at the
    connector's (as in the paper); on the paper's side "frozen" and "paper: tuned".
    """
    paper = printed_experiment("zhou2024")
    paper = paper[paper["model"] == COUNTERPARTS[RESAMPLER]]
    ours = frame[frame["method"].isin(SIZES) & (frame["base"] == RESAMPLER)]
    ours = ours[ours["study"].isin(("zhou2024", "zhou2024-vocabulary"))]
    main = ours["study"] == "zhou2024"
    trained = ours["connector"].replace("tuned", CONNECTOR)
    vocabulary = (ours["connector_learning_rate"] == CONNECTOR_RATE).map(dict(zip((False, True), VOCABULARY)))
    ours = ours.assign(level=trained.where(main, vocabulary), score=100 * ours["score"])
    paper = paper.assign(level=paper["connector"].replace("tuned", PRINTED))
    return pd.concat([_group_means(runs, groups).assign(side=side)
                      for side, runs in (("paper", paper), ("ours", ours))], ignore_index=True)


def likeness(found: pd.DataFrame) -> pd.DataFrame:
    """How much each of our switches resembles the paper's: a row a level of ours.

    found: `changes` of `switch_scores`. signs: share of methods and groups where the change has the paper's sign; a
    column a group with Spearman's rank correlation of the changes over the methods (four ranks: a hint at most).
    """
    wide = found.pivot(index=["group", "method"], columns="level", values="score")
    ours = [level for level in (CONNECTOR, *VOCABULARY) if level in wide]
    rows = [{"level": level, "signs": ((wide[level] > 0) == (wide[PRINTED] > 0)).mean(),
             **{f"ranks {group}": part[level].corr(part[PRINTED], method="spearman")
                for group, part in wide.groupby(level="group", sort=False)}} for level in ours]
    return pd.DataFrame(rows, columns=["level", "signs", *(f"ranks {group}" for group in found["group"].unique())])


def _group_means(runs: pd.DataFrame, groups: Mapping[str, tuple[str, ...]]) -> pd.DataFrame:
    if runs.empty:
        return pd.DataFrame(columns=["method", "level", "seed", "group", "score"]).astype({"score": float})
    table = runs.pivot(index=["method", "level", "seed"], columns="task", values="score")
    found = {name: [task for task in tasks if task in table] for name, tasks in groups.items()}
    means = pd.DataFrame({name: table[tasks].mean(axis=1, skipna=False) for name, tasks in found.items() if tasks},
                         index=table.index)
    found = means.rename_axis(columns="group").stack().dropna().rename("score").reset_index()
    return found.sort_values("method", key=lambda names: names.map(ORDER), kind="stable", ignore_index=True)


def _with_interval(data: pd.DataFrame) -> pd.DataFrame:
    half = stdtrit(data["n"] - 1.0, 0.975) * data["sd"] / data["n"] ** 0.5
    return data.assign(low=data["score"] - half, high=data["score"] + half)
