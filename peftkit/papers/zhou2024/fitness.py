"""Is a task fit for this study? The rule of a task that can tell methods apart, as numbers."""
import math

import pandas as pd

from ...errors import choose
from .study import SEEN, UNSEEN
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
            arms = part[~untrained].groupby(["method", "connector"])["score"].agg(["mean", "var"])
            sd, best = math.sqrt(arms["var"].mean()), arms["mean"].max()
            gap = best - arms["mean"].min()
            measured = {"zero_shot": part[untrained]["score"].item(), "best": best, "spread": gap / sd if sd else math.inf}
            role = "seen" if task in SEEN else "unseen"
            rows.append({"base": base, "task": task, "role": role, **measured, "best_of": " ".join(arms["mean"].idxmax()),
                         "seed_sd": sd, "fit": WORDS[is_fit(role, **measured)]})
    return pd.DataFrame(rows)[["base", "task", "role", "zero_shot", "best", "best_of", "seed_sd", "spread", "fit"]]
