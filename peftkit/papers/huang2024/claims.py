"""What Huang et al. 2024 claim, as code (facts, section 5.3): C1 to C8; and what we ask beside it: M, T, P, R.

The paper's tables are not known, so there is one side only, and the thresholds are those of the facts, not the paper's.
"""
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pandas as pd

from .. import claims
from ..cells import Cells
from ..claims import Claim, Effect
from .cells import BASES, our_cells, read_runs
from .records import every_run
from .study import (
    AFTERWARDS, BASE, CAPTIONS, CONTROLS, GENERAL, LARGER, LEVELS, PATH_TARGETS, PATHS, PATHS_STUDY, PUT_BACK,
    QUESTIONS, RELEASED, RESAMPLER, ROWS, TARGETS, study_of)

Predicate = Callable[[Cells], dict[str, Effect]]

POINTS, OURS = "points", "ours, not the paper's"
HALVES = ("random mask", "magnitude mask", "gradient mask", "discrepancy mask")  # half of the entries, chosen four ways
KINDS = {"captions": CAPTIONS, "questions": QUESTIONS}
ARCHITECTURES = {"LLaVA": (BASE, LARGER), "Idefics2": (RESAMPLER,)}
LEEWAY = -0.5  # points of T that SPIDER may lose and still keep the target (facts, C3)
SHARE = (0.4, 0.6)  # of entries selected (facts, C7)


def gains(value: str, first: str, second: str) -> Predicate:
    """First minus second row in T, S, H or O, an effect each base and target."""
    def predicate(cells: Cells) -> dict[str, Effect]:
        return {f"{value}: {first} − {second} ({model}, {target})":
                Effect(_gain(cells, value, first, second, model, target))
                for model, target in product(cells.models, TARGETS)}

    return predicate


def gain(value: str, first: str, *others: str, models: tuple[str, ...] = (BASE,), low: float = 0.0) -> Predicate:
    """First minus each other row in the mean of these bases and of all targets."""
    return lambda cells: {f"{value}: {first} − {other}": Effect(_gain(cells, value, first, other, models, TARGETS), low)
                          for other in others}


def best_trade_off(cells: Cells) -> dict[str, Effect]:
    """SPIDER's H and O minus the best other row's, on the base that has all rows; an effect each target."""
    leads = [_lead(cells, value, BASE, target) for value, target in product("HO", TARGETS)]
    return {f"{value}: SPIDER − {rival}, the best other row ({target})": Effect(gap)
            for (value, target), (rival, gap) in zip(product("HO", TARGETS), leads)}


def spread_of_halves(cells: Cells) -> dict[str, Effect]:
    """Largest minus smallest O of the four halves, above three deviations of seeds."""
    arms = pd.concat([_mean(cells, "O", row, BASE, TARGETS) for row in HALVES], axis=1)
    noise = round(3 * arms.var().mean() ** 0.5, 2)
    return {"O: largest − smallest of four masks": Effect(arms.max(axis=1) - arms.min(axis=1), low=noise)}


def selected_shares(cells: Cells) -> dict[str, Effect]:
    """The extreme shares of selected entries that any tensor of any run has at the end of an epoch, by base."""
    effects = {}
    for model in cells.models:
        for value, extreme in (("smallest_share", "min"), ("largest_share", "max")):
            shares = pd.concat([_mean(cells, value, "SPIDER", model, target) for target in TARGETS])
            effects[f"{value} ({model})"] = Effect(pd.Series([shares.agg(extreme)]).dropna(), *SHARE)
    return effects


def general(cells: Cells) -> dict[str, Effect]:
    """C2 to C4 on each architecture and kind of task."""
    effects = {}
    for (name, models), (kind, targets) in product(ARCHITECTURES.items(), KINDS.items()):
        where = f"({name}, {kind})"
        for value, low in (("S", 0.0), ("T", LEEWAY)):
            gained = _gain(cells, value, "SPIDER", "full", models, targets)
            effects[f"{value}: SPIDER − full {where}"] = Effect(gained, low)
        for value in "HO":
            rival, lead = _lead(cells, value, models, targets)
            effects[f"{value}: SPIDER − {rival}, the best other row {where}"] = Effect(lead)
    return effects


def at_equal_t(*rivals: str) -> Predicate:
    """S of SPIDER minus a rival's where both have the same T, in the mean of LEVELS, an effect each target."""
    def kept(cells: Cells, row: str, target: str) -> pd.Series:
        return cells.mean(PATHS_STUDY, BASE, row, "tuned", target, LEVELS, value="S")

    def predicate(cells: Cells) -> dict[str, Effect]:
        return {f"S at equal T: SPIDER − {rival} ({target})":
                Effect(kept(cells, "SPIDER", target) - kept(cells, rival, target))
                for rival, target in product(rivals, PATH_TARGETS)}

    return predicate


def saved(arm: str) -> Predicate:
    """Full tuning loses S, and an arm saves more than half of the loss."""
    def predicate(cells: Cells) -> dict[str, Effect]:
        loss = _gain(cells, "S", "zero-shot", "full", BASE, TARGETS)
        gained = _gain(cells, "S", arm, "full", BASE, TARGETS)
        return {"S: zero-shot − full": Effect(loss),
                f"S: {arm} − full, minus half of the loss": Effect(gained - loss / 2)}

    return predicate


def inert(cells: Cells) -> dict[str, Effect]:
    """T and S of the released L2 penalty minus full tuning's."""
    return {f"{value}: {RELEASED} − full": Effect(_gain(cells, value, RELEASED, "full", BASE, TARGETS), -0.5, 0.5)
            for value in "TS"}


def _mean(cells: Cells, value: str, row: str, model, target) -> pd.Series:
    return cells.mean(study_of(row), model, row, "tuned", target, value=value)


def _gain(cells: Cells, value: str, first: str, second: str, model, target) -> pd.Series:
    return _mean(cells, value, first, model, target) - _mean(cells, value, second, model, target)


def _lead(cells: Cells, value: str, model, target) -> tuple[str, pd.Series]:
    """The other row that is best in the mean over seeds, and SPIDER minus that row; our control arms do not count."""
    rows = [row for row in ((*ROWS, *AFTERWARDS) if model == BASE else GENERAL) if row not in ("SPIDER", *CONTROLS)]
    others = {row: _mean(cells, value, row, model, target) for row in rows}
    rival = max(others, key=lambda row: others[row].mean())
    return rival, _mean(cells, value, "SPIDER", model, target) - others[rival]


def _claim(name: str, sentence: str, where: str, predicate: Predicate, unit: str = POINTS, note: str = "",
           exact: bool = False) -> Claim:
    return Claim(name, sentence, where, unit, 0.0, predicate, note, exact=exact)


CLAIMS = {claim.id: claim for claim in (
    _claim("C1", "Full tuning forgets: S falls below zero-shot, on every target.", "abstract",
           gains("S", "zero-shot", "full")),
    _claim("C2", "SPIDER forgets less than full tuning, on every model and target.", "abstract",
           gains("S", "SPIDER", "full")),
    _claim("C3", "SPIDER keeps the target: T no more than half a point below full tuning.", "abstract",
           gain("T", "SPIDER", "full", models=BASES, low=LEEWAY),
           note="in the mean of bases and targets: the sentence has no \"each\""),
    _claim("C3.strict", "SPIDER enhances specialization: T above full tuning.", "abstract",
           gain("T", "SPIDER", "full", models=BASES), note="the abstract's own word"),
    _claim("C4", "SPIDER has the best trade-off: H and O are the highest of all rows.", "abstract, inferred",
           best_trade_off, note="the best other row is chosen on the same seeds, which favors it a little"),
    _claim("C5", "Which half of the entries is tuned matters.", "a third party's note", spread_of_halves,
           note="\"matters\": more than three standard deviations of seeds"),
    _claim("C5.best", "Of four halves, the discrepancy mask's is best.", "a third party's note",
           gain("O", "discrepancy mask", *HALVES[:-1])),
    _claim("C6", "Weights between 0 and 1 improve on the binary discrepancy mask.", "method figure, inferred",
           gain("O", "SPIDER", "discrepancy mask")),
    _claim("C7", "The selected share of every tensor stays within 0.4 to 0.6 without being set.", "released code",
           selected_shares, unit="share of entries", exact=True, note="the most extreme tensor of all runs, counted"),
    _claim("C8", "C2 to C4 hold on both architectures and on captions as well as questions.", "abstract, inferred",
           general, note=f"the other rows there are {', '.join(row for row in GENERAL if row != 'SPIDER')}"),
    _claim("M1", "SPIDER has a higher O than one merge at the end.", OURS, gain("O", "SPIDER", "merge at the end")),
    _claim("T1", "At equal T, SPIDER keeps more of the sources than full tuning.", OURS, at_equal_t("full"),
           note="T from half of the way to the highest that all reach; if not, its advantage is that of a slower way"),
    _claim("T2", "At equal T, SPIDER keeps more of the sources than L2-SP, a random half and LoRA.", OURS,
           at_equal_t(*(row for row in PATHS if row not in ("full", "SPIDER")))),
    _claim("P1", "Most of full tuning's forgetting sits in the projector's change.",
           f"{OURS}; suggested by a public rerun of another method", saved(PUT_BACK),
           note="trained along, then put back to W0"),
    _claim("P1.frozen", "Most of full tuning's forgetting is gone where the projector is frozen.", OURS,
           saved("full, frozen projector")),
    _claim("R1", "The L2 penalty of the authors' sibling code changes nothing.", f"{OURS}; derived from that code",
           inert),
)}


def ledger(runs: pd.DataFrame | str | Path | None = None) -> pd.DataFrame:
    """One row a claim, on `runs`: a frame of `tidy`, a CSV file, or the committed records."""
    if runs is None:
        runs = every_run()
    elif not isinstance(runs, pd.DataFrame):
        runs = read_runs(runs)
    return claims.ledger(CLAIMS.values(), None, None, our_cells(runs))
