"""The main table (Table 1) in one shape for both sides: rows are configurations, columns the eight tasks, U, S, Avg.

All scores lie in [0, 1]; the paper's printed points are divided by 100. U is the mean over the unseen tasks, S over
the seen, Avg over all eight. Index: source (our base or the paper's model), method, connector.
"""
import pandas as pd

from ...errors import PeftkitError
from ...stats import mean_interval
from .printed import printed_table, unseen_and_seen
from .study import FULL, SEEN, SIZES, UNSEEN

COUNTERPARTS = {"tiny-llava-s": "llava_1.5_7b", "tiny-llava-m": "llava_1.5_13b", "tiny-idefics2": "qwen_vl_chat"}
MODELS = {"llava_1.5_7b": "LLaVA-1.5-7B", "llava_1.5_13b": "LLaVA-1.5-13B", "sharegpt4v_7b": "ShareGPT4V-7B",
          "qwen_vl_chat": "Qwen-VL-Chat"}
DATASETS = {"scienceqa_img": "scienceqa"}  # the paper's name -> ours, where they differ
GROUPS = {"unseen": "U", "seen": "S"}
UNTRAINED = "none"  # method and connector of the zero-shot row
INDEX = ["source", "method", "connector"]


def paper_table() -> pd.DataFrame:
    """The paper's Table 1: 32 rows (4 models × 4 methods × connector frozen or tuned), one seed each."""
    printed = printed_table("table01_main").query("dataset != 'avg'").replace({"dataset": DATASETS})
    scores = printed.rename(columns={"model": "source"}).pivot(index=INDEX, columns="dataset", values="value") / 100
    return _with_means(scores)


def seed_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a seed of every trained configuration, index (source, method, connector, seed).

    frame: of `peftkit.studies.tabulate`. Tasks that no record has (smoke tier) are left out of columns and means.
    Raises PeftkitError if a configuration lacks a task that others have: means would compare unlike things.
    """
    trained = frame[frame["method"] != UNTRAINED].rename(columns={"base": "source"})
    scores = trained.pivot(index=[*INDEX, "seed"], columns="task", values="score")
    if (lacking := scores.isna().any(axis=1)).any():
        first = " ".join(map(str, scores.index[lacking][0]))
        raise PeftkitError(f"{lacking.sum()} configurations lack a task, the first is {first}; run the whole study, "
                           "finished runs are kept")
    return _with_means(scores)


def zero_shot_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The untouched bases: one row each, in the columns of `seed_table`."""
    untrained = frame[frame["method"] == UNTRAINED].assign(connector=UNTRAINED).rename(columns={"base": "source"})
    return _with_means(untrained.pivot(index=INDEX, columns="task", values="score"))


def our_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Our Table 1: the mean over seeds of every configuration, and the zero-shot row that the paper does not have."""
    return pd.concat([zero_shot_table(frame), seed_table(frame).groupby(level=INDEX).mean()]).sort_index()


def main_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Both sides: `our_table`, then `paper_table` in the same columns (in the smoke tier we have only two tasks)."""
    paper = paper_table()
    return pd.concat([our_table(frame), paper])[paper.columns].sort_index()


def beside(table: pd.DataFrame, base: str) -> pd.DataFrame:
    """One base's table with the paper's row below each of ours, in points (0 to 100) as the paper prints them."""
    pair = table.loc[[base, COUNTERPARTS[base]]].reset_index()
    pair["method"] = pd.Categorical(pair["method"], [UNTRAINED, *FULL, *SIZES])
    pair = pair.sort_values(["method", "connector"], kind="stable").set_index(["method", "connector", "source"])
    return (100 * pair).round(1)


def long(table: pd.DataFrame) -> pd.DataFrame:
    """A table as one score a row, columns source, method, connector, column, score: what a figure saves."""
    return table.rename_axis(columns="column").stack().rename("score").reset_index()


def group_means(seeds: pd.DataFrame) -> pd.DataFrame:
    """Figure 2's data: mean over the unseen and over the seen tasks, in every row of `seeds` and in the mean of rows.

    seeds: a table whose index adds one level to (source, method, connector), such as `seed_table`. Columns: source,
    method, connector, group, row ("mean", "seed 42", ...), score, low, high. low and high are the 95 % Student-t
    interval of a mean of two rows or more; where there is one row only, and for single rows, they are empty.
    """
    rows = []
    for keys, part in seeds.groupby(level=INDEX):
        for group, column in GROUPS.items():
            name, scores = seeds.index.names[-1], part[column]
            interval = mean_interval(scores) if len(scores) > 1 else None
            bounds = (interval.low, interval.high) if interval else (float("nan"), float("nan"))
            rows.append((*keys, group, "mean", scores.mean(), *bounds))
            rows += [(*keys, group, f"{name} {label[-1]}", score, float("nan"), float("nan"))
                     for label, score in scores.items()]
    return pd.DataFrame(rows, columns=[*INDEX, "group", "row", "score", "low", "high"])


def paper_group_means() -> pd.DataFrame:
    """The paper's figure 2 from its printed numbers: as `group_means`, the four models in the place of seeds.

    The mean over models is what the figure shows; an interval over four chosen models would mean nothing: left empty.
    """
    models = paper_table().reset_index().rename(columns={"source": "model"}).assign(source="paper")
    found = group_means(models.set_index([*INDEX, "model"]))
    return found.assign(low=float("nan"), high=float("nan"))


def figure2_data(frame: pd.DataFrame) -> pd.DataFrame:
    """Both sides of figure 2: `group_means` of our seeds, the zero-shot scores, `paper_group_means`."""
    untouched = zero_shot_table(frame).rename(columns={column: group for group, column in GROUPS.items()})
    flat = long(untouched[list(GROUPS)]).rename(columns={"column": "group"}).assign(row="mean")
    found = pd.concat([group_means(seed_table(frame)), flat, paper_group_means()], ignore_index=True)
    order = [*COUNTERPARTS, "paper"]
    return found.sort_values("source", key=lambda names: names.map(order.index), kind="stable", ignore_index=True)


def _with_means(scores: pd.DataFrame) -> pd.DataFrame:
    """The tasks in the paper's order, then U, S and Avg; a group without any task gets no mean."""
    unseen, seen = (tuple(task for task in group if task in scores.columns) for group in (UNSEEN, SEEN))
    tasks = scores[[*unseen, *seen]].rename_axis(columns=None)
    return tasks.join(unseen_and_seen(tasks, unseen, seen))
