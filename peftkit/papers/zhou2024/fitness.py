"""Is a task fit for this study? The rule of a task that can tell methods apart, as numbers."""
import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from ...errors import choose
from ...studies import Record
from .study import SEEN, SIZES, UNSEEN
from .tables import UNTRAINED

HEADROOM = 0.15  # unseen: the best configuration is at least this much above zero-shot ...
CEILING = 0.85  # ... and reaches this
SPREAD = 3.0  # ... and best and worst configuration lie at least this many seed standard deviations apart
SEEN_RANGE = (0.85, 0.99)  # seen: zero-shot leaves room to lose and to gain
WORDS = {True: "yes", False: "no", None: "?"}


def is_fit(role: str, *, zero_shot: float, best: float, spread: float) -> bool | None:
    """Whether a task is fit; None if the rule needs the spread between seeds and there is none (one seed).

    role: "unseen" or "seen". zero_shot: score of the untouched base; best: mean score of the best configuration;
    spread: best minus worst configuration in units of the seed standard deviation, NaN if that is unknown.
    """
    if choose("role", role, ("unseen", "seen")) == "seen":
        return SEEN_RANGE[0] <= zero_shot <= SEEN_RANGE[1]
    if best - zero_shot < HEADROOM or best < CEILING:
        return False
    return None if math.isnan(spread) else spread >= SPREAD


def fitness(frame: pd.DataFrame) -> pd.DataFrame:
    """Every task on every base: role, zero_shot, best, best_of (which), seed_sd, spread, fit ("yes", "no" or "?").

    frame: of `peftkit.studies.tabulate`. A configuration is a method with the connector frozen or tuned; seed_sd is the
    standard deviation over seeds, pooled over the configurations. Eight configurations without any real difference
    would still lie about 1.3 (five seeds) to 1.6 (three seeds) standard deviations apart.
    """
    rows = []
    for base, on_base in frame.groupby("base", sort=False):
        for task in (task for task in UNSEEN + SEEN if task in set(on_base["task"])):
            part = on_base[on_base["task"] == task]
            untrained = part["method"] == UNTRAINED
            arms = part[part["method"].isin(SIZES)].groupby(["method", "connector"])["score"].agg(["mean", "var"])
            sd, best = math.sqrt(arms["var"].mean()), arms["mean"].max()
            gap = best - arms["mean"].min()
            measured = {"zero_shot": part[untrained]["score"].item(), "best": best,
                        "spread": gap / sd if sd else math.inf}
            role = "seen" if task in SEEN else "unseen"
            rows.append({"base": base, "task": task, "role": role, **measured, "seed_sd": sd,
                         "best_of": " ".join(arms["mean"].idxmax()), "fit": WORDS[is_fit(role, **measured)]})
    return pd.DataFrame(rows)[["base", "task", "role", "zero_shot", "best", "best_of", "seed_sd", "spread", "fit"]]


def resolution(records: Iterable[Record]) -> pd.DataFrame:
    """The smallest change from zero-shot that each task's test examples resolve: base, task, resolves (a score).

    That is 1.96 standard errors, over test examples, of a configuration's mean change of the same example's score;
    the median over configurations. Seeds are averaged first: this is the noise of the test set, not of training.
    """
    scores: dict[tuple, dict[tuple, list]] = {}
    for record in records:
        config = record.config
        arm = (config["method"], config["options"].get("connector"))
        arms = scores.setdefault((config["base"], config["task"]), {})
        arms.setdefault(arm, []).append(record.predictions["score"].to_numpy())
    rows = []
    for (base, task), arms in scores.items():
        zero_shot = arms.pop((UNTRAINED, None))[0]
        changes = [np.mean(runs, axis=0) - zero_shot for runs in arms.values()]  # each (test examples,)
        errors = [change.std(ddof=1) / math.sqrt(len(change)) for change in changes]
        rows.append({"base": base, "task": task, "resolves": 1.96 * float(np.median(errors))})
    return pd.DataFrame(rows)
