"""What survives: a few of the paper's sentences as differences, on our records and on the paper's printed numbers.

Every difference is formed inside each seed (so it is paired), then a 95 % Student-t interval is put on its mean over
seeds. The whole list of the paper's claims is in facts section 5; these are the ones about connector and methods.
"""
import math

import pandas as pd

from ...errors import PeftkitError
from ...stats import holm, mean_interval, p_value
from .tables import COUNTERPARTS, paper_table, seed_table

METHODS = ("lora", "adapter", "ia3", "prefix-peft")
NAMES = {"lora": "LoRA", "adapter": "Adapter", "ia3": "IA3", "prefix-peft": "Prefix"}
RESAMPLERS = ("tiny-idefics2",)  # bases in the place of Qwen-VL-Chat
TIE = 0.01  # the paper has one seed: a printed difference of means below one point counts as a tie (facts section 5.1)


def effects(scores: pd.DataFrame) -> dict[tuple[str, str], pd.Series]:
    """Per seed, the differences that the claims are about: (claim, what is subtracted) -> difference by seed.

    scores: columns U and S, index (method, connector, seed).
    """
    unseen, seen = (scores[group].unstack(["method", "connector"]) for group in ("U", "S"))
    gain = {method: unseen[method, "tuned"] - unseen[method, "frozen"] for method in METHODS}
    kept = [seen[method, "frozen"] - seen[method, "tuned"] for method in METHODS]
    frozen = {method: unseen[method, "frozen"] for method in METHODS}
    return {
        **{("B1", f"{NAMES[method]}: U tuned − frozen"): gain[method] for method in METHODS},
        ("B3", "gain of IA3 − other methods"): gain["ia3"] - (gain["lora"] + gain["adapter"] + gain["prefix-peft"]) / 3,
        ("C3", "U frozen: LoRA, Adapter − IA3, Prefix"):
            (frozen["lora"] + frozen["adapter"] - frozen["ia3"] - frozen["prefix-peft"]) / 2,
        ("B4", "S frozen − tuned, all methods"): sum(kept) / len(kept),
    }


def expected_sign(claim: str, base: str) -> int:
    """The sign that the paper states, 0 if it states none: on Qwen-VL-Chat, tuning the connector hurts (B1)."""
    if base in RESAMPLERS:
        return {"B1": -1, "B3": 0}.get(claim, 1)
    return 1


def verdict(sign: int, low: float, high: float) -> str:
    """"supported" or "contradicted" if the whole interval lies on one side of zero, else "unresolved".

    sign: +1 or −1, the side that the claim names. Bounds that are NaN (one seed) resolve nothing.
    """
    if sign not in (1, -1):
        raise PeftkitError(f"sign is {sign!r}; accepted: 1 or -1")
    if math.isnan(low) or math.isnan(high) or low <= 0 <= high:
        return "unresolved"
    return "supported" if (low > 0) == (sign > 0) else "contradicted"


def differences(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a claim and base: our difference with interval and verdict, beside the paper's printed difference.

    frame: of `peftkit.studies.tabulate`. Columns: base, claim, difference, expected, ours, low, high, seeds, verdict,
    p_holm (paired t test, adjusted by Holm over all rows), printed, on_paper (its verdict with `TIE` as half-width).
    """
    seeds, printed, rows = seed_table(frame), paper_table(), []
    for base in frame["base"].unique():
        theirs = effects(pd.concat({42: printed.loc[COUNTERPARTS[base]]}, names=["seed"]).reorder_levels([1, 2, 0]))
        for (claim, what), by_seed in effects(seeds.loc[base]).items():
            if sign := expected_sign(claim, base):
                paper = theirs[claim, what].item()
                measured = _measured(by_seed)
                rows.append({"base": base, "claim": claim, "difference": what, "expected": f"{sign:+d}"[0], **measured,
                             "verdict": verdict(sign, measured["low"], measured["high"]), "printed": paper,
                             "on_paper": verdict(sign, paper - TIE, paper + TIE)})
    found = pd.DataFrame(rows)
    known = found["p"].notna()
    found.loc[known, "p_holm"] = holm(found.loc[known, "p"], declared=len(found)) if known.any() else math.nan
    return found.drop(columns="p")


def _measured(by_seed: pd.Series) -> dict:
    if len(by_seed) < 2:
        return {"ours": by_seed.item(), "low": math.nan, "high": math.nan, "seeds": 1, "p": math.nan}
    interval = mean_interval(by_seed)
    return {"ours": interval.mean, "low": interval.low, "high": interval.high, "seeds": interval.n,
            "p": p_value(interval)}
