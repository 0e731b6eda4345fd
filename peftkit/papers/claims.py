"""Claims as code: a sentence of a paper becomes a predicate, judged on the paper's printed numbers and on our runs.

A predicate asks `Cells` for mean scores and returns effects: named differences, each with the range in which the
sentence says that it lies. The same predicate runs on both sides.

    printed numbers   no seeds: each stands for itself ± `margin`, its noise. Outside the range: contradicted, however
                      little, since the sentence is about these very numbers. Inside by the margin: supported.
    our records       an effect a seed, paired; a 95 % Student-t interval takes the place of the margin. Wholly inside
                      the range: supported. Wholly outside: contradicted.

Else the verdict is unresolved. A sentence with k effects is supported if all are. It is contradicted if one is; as that
one is the worst of k, its interval on records must lie outside at the level 1 - 0.05 / k (Bonferroni).
"""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import inf, nan
from textwrap import fill
from typing import NamedTuple

import pandas as pd

from ..errors import choose
from ..stats import mean_interval, seeds_to_resolve
from .cells import Cell, Cells

PAPERS = {key: f"peftkit.papers.{key}.claims" for key in ("zhou2024", "huang2024")}
SUPPORTED, CONTRADICTED, UNRESOLVED = "supported", "contradicted", "unresolved"
NOT_TESTABLE, RUNS_MISSING, NOT_PRINTED = "not testable here", "runs missing", "no printed numbers"
COLUMNS = ["id", "claim", "where", "verdict_paper", "verdict_ours", "effect", "unit", "low", "high", "seeds", "note"]
ALPHA = 0.05


def claims(paper: str, runs=None) -> pd.DataFrame:
    """The ledger of a paper's claims: its printed numbers against the committed records, or against `runs`.

    runs: a tidy frame (`peftkit.studies.tabulate`) or the path of a CSV file with the same columns. Columns of the
    ledger: `COLUMNS`; effect, low, high (95 % interval) and seeds are of our runs and of the effect that decides.
    Raises `PeftkitError` for an unknown paper, base, study, method or task.
    """
    return import_module(PAPERS[choose("paper", paper, PAPERS)]).ledger(runs)


def as_text(table: pd.DataFrame) -> str:
    """A ledger for the terminal: a block a claim, and how many claims our runs resolve."""
    blocks = []
    for row in table.itertuples():
        measured = f": {row.effect:+.2f} {row.unit}" if row.effect == row.effect else ""
        interval = f", 95 % interval {row.low:.2f} to {row.high:.2f}, {row.seeds} seeds" if row.low == row.low else ""
        lines = (f"{row.id}  paper {row.verdict_paper} | ours {row.verdict_ours}{measured}{interval}",
                 *(fill(text, 116, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
                   for text in (f"{row.claim} ({row.where})", row.note)))
        blocks.append("\n".join(lines))
    testable = table[table["verdict_ours"] != NOT_TESTABLE]
    resolved = testable["verdict_ours"].isin((SUPPORTED, CONTRADICTED)).sum()
    counts = ", ".join(f"{count} {word}" for word, count in table["verdict_ours"].value_counts().items())
    return "\n\n".join([*blocks, f"Our runs resolve {resolved} of {len(testable)} testable claims ({counts})."])


class Effect(NamedTuple):
    """One number by seed, and the open range in which the sentence says that it lies."""

    values: pd.Series
    low: float = 0.0
    high: float = inf


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper. `predicate` turns cells into effects by name, all of them in `unit`.

    where: section or table of the paper. margin: noise of a printed effect. note: what a reader must know about it.
    untestable: why our runs cannot judge it, empty if they can. exact: computed, not trained, so it needs no seeds.
    """

    id: str
    sentence: str
    where: str
    unit: str
    margin: float
    predicate: Callable[[Cells], dict[str, Effect]]
    note: str = ""
    untestable: str = ""
    exact: bool = False

    def needs(self, models: Sequence[str]) -> list[Cell]:
        """Every cell that the claim asks of a side with these models."""
        nothing = Cells(pd.DataFrame(columns=[*Cell._fields, "seed"]), models)
        self.predicate(nothing)
        return list(dict.fromkeys(nothing.asked))

    def judge(self, cells: Cells) -> "Finding":
        """The verdict on these cells, or what is missing."""
        cells.forget()
        effects = self.predicate(cells)
        if cells.missing:
            return Finding(RUNS_MISSING, note=f"needs {cells.missing_runs()}")
        if cells.printed or self.exact:
            parts = [_by_margin(name, effect, self.margin) for name, effect in effects.items()]
        else:
            parts = [_by_seeds(name, effect, len(effects)) for name, effect in effects.items()]
        words = [part.verdict for part in parts]
        verdict = next((word for word in (CONTRADICTED, UNRESOLVED) if word in words), SUPPORTED)
        worst = min((part for part in parts if part.verdict == verdict), key=lambda part: part.slack)
        count = f", {words.count(SUPPORTED)} of {len(parts)} supported" if len(parts) > 1 else ""
        more = _seeds_needed(parts) if verdict == UNRESOLVED else ""
        note = worst.note + count + more
        return worst._replace(note=note if self.exact else cells.say(note))


class Finding(NamedTuple):
    """A verdict, and of the effect that decides it: mean over seeds, 95 % interval, sd, distance inside its range."""

    verdict: str
    effect: float = nan
    low: float = nan
    high: float = nan
    seeds: int = 0
    note: str = ""
    slack: float = nan
    sd: float = nan


def ledger(claims: Iterable[Claim], printed: Cells | None, corrected: Cells | None, ours: Cells) -> pd.DataFrame:
    """One row a claim (`COLUMNS`).

    printed: None where the paper's numbers are not known. corrected: these with suspected misprints replaced; the note
    tells where that changes the verdict.
    """
    rows = []
    for claim in claims:
        paper = claim.judge(printed) if printed else Finding(NOT_PRINTED)
        mended = claim.judge(corrected) if corrected else paper
        ran = Finding(NOT_TESTABLE, note=claim.untestable) if claim.untestable else claim.judge(ours)
        notes = [printed and f"paper: {paper.effect:+.3g} {paper.note}", f"ours: {ran.note}", claim.note]
        if mended.verdict != paper.verdict:
            notes.insert(1, f"misprints corrected: {mended.verdict}, {mended.effect:+.3g} {mended.note}")
        rows.append({"id": claim.id, "claim": claim.sentence, "where": claim.where, "verdict_paper": paper.verdict,
                     "verdict_ours": ran.verdict, "unit": claim.unit, "note": ". ".join(filter(None, notes)),
                     **{name: getattr(ran, name) for name in ("effect", "low", "high", "seeds")}})
    return pd.DataFrame(rows)[COLUMNS]


def _by_margin(name: str, effect: Effect, margin: float) -> Finding:
    value = float(effect.values.mean())
    slack = min(value - effect.low, effect.high - value)
    verdict = CONTRADICTED if slack < 0 else SUPPORTED if slack > 0 and slack >= margin else UNRESOLVED
    hint = " (not contradicted, but within the noise)" if verdict == UNRESOLVED else ""
    return Finding(verdict, value, note=name + _range(effect) + hint, slack=slack)


def _by_seeds(name: str, effect: Effect, tests: int) -> Finding:
    """The verdict on one of the `tests` effects of a sentence."""
    values, note = effect.values.dropna(), name + _range(effect)  # dropped: seeds of one side of a difference only
    mean = float(values.mean())
    slack = min(mean - effect.low, effect.high - mean)
    if len(values) < 2:
        return Finding(UNRESOLVED, mean, seeds=len(values), note=f"{note}: an interval needs two seeds", slack=slack)
    interval, strict = mean_interval(values), mean_interval(values, 1 - ALPHA / tests)
    if interval.low > effect.low and interval.high < effect.high:
        verdict = SUPPORTED
    elif strict.high < effect.low or strict.low > effect.high:
        verdict = CONTRADICTED
    else:
        verdict = UNRESOLVED
        if interval.high < effect.low or interval.low > effect.high:
            note += f" (outside at 95 %, but not as the worst of {tests})"
    sd = max(interval.sd, 1e-9)
    return Finding(verdict, mean, interval.low, interval.high, interval.n, note, slack, sd)


def _seeds_needed(parts: list[Finding]) -> str:
    """About how many seeds would contradict one effect or, if all lie inside their ranges, support all."""
    open_parts = [part for part in parts if part.verdict == UNRESOLVED and part.sd > 0]
    outside = [part for part in open_parts if part.slack < 0]
    needed = [seeds_to_resolve(abs(part.slack), part.sd, alpha=ALPHA / len(parts) if outside else ALPHA)
              for part in outside or open_parts]
    if not needed:
        return ""
    seeds = (min if outside else max)(inf if count is None else count for count in needed)
    return f"; about {seeds} seeds would resolve it" if seeds < inf else "; no number of seeds would resolve it"


def _range(effect: Effect) -> str:
    if effect.high < inf:
        return f" in ({effect.low:g}, {effect.high:g})"
    return f" > {effect.low:g}" if effect.low else ""
