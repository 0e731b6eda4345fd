"""What Huang et al. 2024 claim, as code (facts, section 5.3): C1 to C8; and what we ask beside it: T, P, R.

The paper's tables are not known, so there is one side only, and the thresholds are those of the facts, not the paper's.
"""
from collections.abc import Callable
from itertools import product
from math import inf
from pathlib import Path

import pandas as pd

from .. import claims
from ..cells import Cells
from ..claims import Claim, Effect
from .cells import our_cells, read_runs
from .records import PATHS_STUDY, every_run
from .study import (
    AFTERWARDS, BASE, CAPTIONS, GENERAL, LARGER, MAIN, PATH_TARGETS, PATHS, QUESTIONS, RELEASED, RESAMPLER, ROWS,
    TARGETS)

Predicate = Callable[[Cells], dict[str, Effect]]

POINTS, OURS = "points", "ours, not the paper's"
HALVES = ("random mask", "magnitude mask", "gradient mask", "discrepancy mask")  # half of the entries, chosen four ways
KINDS = {"captions": CAPTIONS, "questions": QUESTIONS}
ARCHITECTURES = {"LLaVA": (BASE, LARGER), "Idefics2": (RESAMPLER,)}
LEEWAY = -0.5  # points of T that SPIDER may lose and still keep the target (facts, C3)
SHARE = (0.4, 0.6)  # of entries selected (facts, C7)


def gains(value: str, first: str, second: str, low: float = 0.0, high: float = inf) -> Predicate:
    """First minus second row in T, S, H or O, an effect each base and target."""
    def predicate(cells: Cells) -> dict[str, Effect]:
        return {f"{value}: {first} − {second} ({model}, {target})":
                Effect(_gain(cells, value, first, second, model, target), low, high)
                for model, target in product(cells.models, TARGETS)}

    return predicate


def gain(value: str, first: str, second: str, low: float = 0.0) -> Predicate:
    """First minus second row on the first base, in the mean of the targets."""
    name = f"{value}: {first} − {second}"
    return lambda cells: {name: Effect(_gain(cells, value, first, second, BASE, TARGETS), low)}


def best_trade_off(cells: Cells) -> dict[str, Effect]:
    """SPIDER's H and O minus those of the best other row, an effect each base and target."""
    return {f"{value}: SPIDER − the best other row ({model}, {target})": Effect(_lead(cells, value, model, target))
            for value, model, target in product("HO", cells.models, TARGETS)}


def which_half(cells: Cells) -> dict[str, Effect]:
    """O of the discrepancy mask minus each other half's; the halves' spread, above three deviations of seeds."""
    arms = pd.concat([_mean(cells, "O", row, BASE, TARGETS) for row in HALVES], axis=1, keys=HALVES)
    ours, spread = arms["discrepancy mask"], arms.max(axis=1) - arms.min(axis=1)
    noise = 3 * arms.var().mean() ** 0.5
    return {**{f"O: discrepancy mask − {row}": Effect(ours - arms[row]) for row in HALVES[:-1]},
            "O: largest − smallest of four masks": Effect(spread, low=noise)}


def selected_shares(cells: Cells) -> dict[str, Effect]:
    """The extreme shares of selected entries, over all targets, epochs and tensors."""
    effects = {}
    for model in cells.models:
        for value, extreme in (("smallest_share", "min"), ("largest_share", "max")):
            shares = [_mean(cells, value, "SPIDER", model, target) for target in TARGETS]
            effects[f"{value} ({model})"] = Effect(pd.concat(shares, axis=1).agg(extreme, axis=1), *SHARE)
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
            effects[f"{value}: SPIDER − the best other row {where}"] = Effect(_lead(cells, value, models, targets))
    return effects


def at_equal_t(*rivals: str) -> Predicate:
    """S of SPIDER minus a rival's where both have the same T, an effect each target."""
    return lambda cells: {f"S at equal T: SPIDER − {rival} ({target})":
                          Effect(_gain(cells, "S", "SPIDER", rival, BASE, target, study=PATHS_STUDY))
                          for rival, target in product(rivals, PATH_TARGETS)}


def saved_by_the_projector(cells: Cells) -> dict[str, Effect]:
    """The share of full tuning's loss in S, in percent, that is not there when the projector is frozen."""
    saved = _gain(cells, "S", "full, frozen projector", "full", BASE, TARGETS)
    return {"share of the loss": Effect(100 * saved / _gain(cells, "S", "zero-shot", "full", BASE, TARGETS), low=50)}


def inert(cells: Cells) -> dict[str, Effect]:
    """T and S of the released L2 penalty minus full tuning's."""
    parts = {}
    for value in "TS":
        penalized = _mean(cells, value, RELEASED, BASE, TARGETS, study=f"{MAIN}-released")
        parts[f"{value}: {RELEASED} − full"] = Effect(penalized - _mean(cells, value, "full", BASE, TARGETS), -0.5, 0.5)
    return parts


def _mean(cells: Cells, value: str, row: str, model, target, study: str = MAIN) -> pd.Series:
    return cells.mean(study, model, row, "tuned", target, value=value)


def _gain(cells: Cells, value: str, first: str, second: str, model, target, study: str = MAIN) -> pd.Series:
    return _mean(cells, value, first, model, target, study) - _mean(cells, value, second, model, target, study)


def _lead(cells: Cells, value: str, model, target) -> pd.Series:
    """SPIDER minus the other row that is best in the mean over seeds; our control arms do not count."""
    rows = (*ROWS, *AFTERWARDS) if model == BASE else GENERAL
    others = [_mean(cells, value, row, model, target) for row in rows if not row.startswith("SPIDER")
              and not row.endswith("frozen projector")]
    return _mean(cells, value, "SPIDER", model, target) - max(others, key=lambda scores: scores.mean())


def _claim(name: str, sentence: str, where: str, predicate: Predicate, unit: str = POINTS, note: str = "") -> Claim:
    return Claim(name, sentence, where, unit, 0.0, predicate, note)


CLAIMS = {claim.id: claim for claim in (
    _claim("C1", "Full tuning forgets: S falls below zero-shot, on every target.", "abstract",
           gains("S", "zero-shot", "full")),
    _claim("C2", "SPIDER forgets less than full tuning, on every model and target.", "abstract",
           gains("S", "SPIDER", "full")),
    _claim("C3", "SPIDER keeps the target: T no more than half a point below full tuning.", "abstract",
           gains("T", "SPIDER", "full", low=LEEWAY)),
    _claim("C3.strict", "SPIDER enhances specialization: T above full tuning.", "abstract",
           gains("T", "SPIDER", "full"), note="the abstract's own word"),
    _claim("C4", "SPIDER has the best trade-off: H and O are the highest of all rows.", "abstract, inferred",
           best_trade_off, note="the best other row is the one with the highest mean over seeds"),
    _claim("C5", "Which half is tuned matters, and the discrepancy mask chooses best.", "a third party's note",
           which_half),
    _claim("C6", "Weights between 0 and 1 improve on the binary discrepancy mask.", "method figure, inferred",
           gain("O", "SPIDER", "discrepancy mask")),
    _claim("C7", "The selected share of every tensor stays within 0.4 to 0.6 without being set.", "released code",
           selected_shares, unit="share of entries"),
    _claim("C8", "C2 to C4 hold on both architectures and on captions as well as questions.", "abstract, inferred",
           general),
    _claim("T1", "At equal T, SPIDER keeps more of the sources than full tuning.", OURS, at_equal_t("full"),
           note="if not, its advantage is that of an earlier stop"),
    _claim("T2", "At equal T, SPIDER keeps more of the sources than L2-SP, a random half and LoRA.", OURS,
           at_equal_t(*(row for row in PATHS if row not in ("full", "SPIDER")))),
    _claim("P1", "Most of full tuning's forgetting sits in the projector.", f"{OURS}; suggested by a public rerun",
           saved_by_the_projector, unit="%"),
    _claim("R1", "The released L2 penalty changes nothing.", f"{OURS}; derived from the released code", inert),
)}


def ledger(runs: pd.DataFrame | str | Path | None = None) -> pd.DataFrame:
    """One row a claim, on `runs`: a frame of `tidy`, a CSV file, or the committed records."""
    if runs is None:
        runs = every_run()
    elif not isinstance(runs, pd.DataFrame):
        runs = read_runs(runs)
    return claims.ledger(CLAIMS.values(), None, None, our_cells(runs))
