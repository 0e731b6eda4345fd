"""The instrument on made-up cells: means, missing runs, verdicts with and without seeds, the ledger."""
import math

import pandas as pd
import pytest

from peftkit.errors import PeftkitError
from peftkit.papers.cells import Cell, Cells
from peftkit.papers.claims import COLUMNS, Claim, Effect, as_text, claims, ledger

ARM = {"study": "s", "model": "m", "connector": "tuned", "task": "t"}


def cells_of(scores, **more):
    """Cells of one task: method -> score by seed."""
    rows = [{**ARM, "setting": None, "method": method, "seed": seed, "score": score}
            for method, by_seed in scores.items() for seed, score in by_seed.items()]
    return Cells(pd.DataFrame(rows), ["m"], **more)


def difference(cells):
    return {"a − b": Effect(cells.mean(**ARM, method="a") - cells.mean(**ARM, method="b"))}


def claim_of(predicate=difference, **more):
    return Claim(**{"id": "X1", "sentence": "a beats b", "where": "Table 9", "unit": "points", "margin": 1.0,
                    "predicate": predicate} | more)


def seeds(*scores):
    return dict(enumerate(scores))


def effects_of(*all_scores, low=0.0, high=math.inf):
    """A predicate that asks nothing."""
    return lambda cells: {f"e{i}": Effect(pd.Series(list(scores)), low, high) for i, scores in enumerate(all_scores)}


# ── cells ──

def test_a_mean_weighs_all_cells_the_same_and_keeps_the_seeds_that_all_have():
    cells = cells_of({"a": seeds(1.0, 2.0), "b": seeds(3.0, 6.0)})
    assert cells.mean(**ARM, method=("a", "b")).to_dict() == {0: 2.0, 1: 4.0}
    assert cells.missing == []


def test_a_cell_that_is_not_there_and_one_that_lacks_a_seed_are_missing():
    cells = cells_of({"a": seeds(1.0, 2.0), "b": {1: 6.0}})
    cells.mean(**ARM, method=("a", "b", "c"))
    assert cells.missing == [(Cell("s", "m", "b", "tuned", "t"), 0), (Cell("s", "m", "c", "tuned", "t"), None)]
    assert cells.missing_runs() == "study s, 2 cells: model m; method b, c; connector tuned; task t; seed 0"


def test_a_run_without_a_score_is_missing():
    cells = cells_of({"a": seeds(1.0, math.nan)})
    cells.mean(**ARM, method="a")
    assert cells.missing == [(Cell("s", "m", "a", "tuned", "t"), 1)]


def test_models_that_a_side_does_not_have_stay_out_of_its_means():
    cells = cells_of({"a": seeds(1.0)})
    assert cells.mean(**ARM | {"model": ("m", "another")}, method="a").tolist() == [1.0] and not cells.missing


def test_two_scores_of_one_run_are_refused():
    row = {**ARM, "setting": None, "method": "a", "seed": 3, "score": 1.0}
    with pytest.raises(PeftkitError, match="two scores of seed 3 for s, m, a, tuned, t"):
        Cells(pd.DataFrame([row, row]), ["m"])


# ── verdicts on printed numbers ──

@pytest.mark.parametrize("value, low, high, verdict", [
    (1.0, 0, math.inf, "supported"), (0.9, 0, math.inf, "unresolved"), (0.0, 0, math.inf, "unresolved"),
    (-0.1, 0, math.inf, "contradicted"), (10.9, 10, math.inf, "unresolved"), (9.9, 10, math.inf, "contradicted"),
    (0.5, -2, 2, "supported"), (-1.5, -2, 2, "unresolved"), (2.1, -2, 2, "contradicted")])
def test_a_printed_effect_is_judged_by_side_and_margin(value, low, high, verdict):
    found = claim_of(effects_of([value], low=low, high=high)).judge(cells_of({"a": seeds(0.0)}, printed=True))
    assert (found.verdict, found.effect, found.seeds) == (verdict, value, 0) and math.isnan(found.low)


# ── verdicts on records ──

@pytest.mark.parametrize("scores, low, high, verdict", [
    ([1.0, 1.1, 1.2], 0, math.inf, "supported"), ([-1.0, -1.1, -1.2], 0, math.inf, "contradicted"),
    ([-1.0, 1.0, 2.0], 0, math.inf, "unresolved"), ([0.1, 0.1, 0.1], 0, math.inf, "supported"),  # no margin here
    ([0.1, 0.0, -0.1], -1, 1, "supported"), ([0.9, 1.0, 0.8], -1, 1, "unresolved"),
    ([1.5, 1.6, 1.7], -1, 1, "contradicted"), ([5.0], 0, math.inf, "unresolved")])
def test_records_are_judged_by_the_interval_over_seeds(scores, low, high, verdict):
    found = claim_of(effects_of(scores, low=low, high=high)).judge(cells_of({"a": seeds(0.0)}))
    assert (found.verdict, found.seeds) == (verdict, len(scores))


def test_the_interval_is_students_on_paired_differences():
    found = claim_of().judge(cells_of({"a": seeds(5.0, 7.0, 9.0), "b": seeds(1.0, 2.0, 6.0)}))
    mean, sd = 4.0, 1.0  # of 4, 5, 3
    half = 4.302653 * sd / math.sqrt(3)
    assert (found.effect, found.low, found.high) == pytest.approx((mean, mean - half, mean + half), abs=1e-5)


def test_a_sentence_holds_if_all_its_effects_do_and_the_weakest_is_shown():
    good, better, unclear = [1.0, 1.1, 1.2], [5.0, 5.1, 5.2], [-2.0, 1.0, 2.0]
    assert claim_of(effects_of(better, good)).judge(cells_of({"a": seeds(0.0)})).effect == pytest.approx(1.1)
    found = claim_of(effects_of(better, unclear)).judge(cells_of({"a": seeds(0.0)}))
    assert found.verdict == "unresolved" and found.note.startswith("e1, 1 of 2 supported; about ")


def test_the_worst_of_many_effects_needs_more_to_contradict():
    bad = [-1.0, -2.0, -1.5]  # t = -5.2: below zero at 95 %, not at 1 - 0.05 / 10
    alone, among = (claim_of(effects_of(bad, *[[5.0, 5.1, 5.2]] * more)).judge(cells_of({"a": seeds(0.0)}))
                    for more in (0, 9))
    assert (alone.verdict, among.verdict) == ("contradicted", "unresolved")
    assert among.high < 0 and "outside at 95 %, but not as the worst of 10" in among.note


def test_seeds_of_one_side_of_a_difference_do_not_count():
    def predicate(cells):
        return {"x": Effect(pd.Series({1: 1.0, 2: 1.1, 3: 1.2}) - pd.Series({1: 0.0, 2: 0.0}))}

    assert claim_of(predicate).judge(cells_of({"a": seeds(0.0)})).seeds == 2


def test_missing_runs_are_named_instead_of_a_verdict():
    found = claim_of().judge(cells_of({"a": seeds(1.0, 2.0)}))
    assert found.verdict == "runs missing" and math.isnan(found.effect)
    assert found.note == "needs study s, 1 cell: model m; method b; connector tuned; task t"


def test_a_computed_claim_needs_no_seeds():
    cells = cells_of({"a": {"counted": 3.0}, "b": {"counted": 1.0}})
    assert claim_of(exact=True).judge(cells).verdict == "supported"
    assert claim_of().judge(cells).verdict == "unresolved"


def test_a_claim_tells_what_it_needs():
    assert claim_of().needs(["m"]) == [Cell("s", "m", "a", "tuned", "t"), Cell("s", "m", "b", "tuned", "t")]


# ── ledger ──

def test_the_ledger_sets_both_sides_beside_each_other():
    printed = cells_of({"a": {"printed": 3.0}, "b": {"printed": 2.5}}, printed=True)
    corrected = cells_of({"a": {"printed": 2.0}, "b": {"printed": 2.5}}, printed=True)
    ours = cells_of({"a": seeds(5.0, 7.0, 9.0), "b": seeds(1.0, 2.0, 6.0)}, names={"m": "base"})
    table = ledger([claim_of(), claim_of(id="X2", untestable="no judge")], printed, corrected, ours)
    assert list(table.columns) == COLUMNS
    assert table[["id", "verdict_paper", "verdict_ours", "seeds"]].values.tolist() == [
        ["X1", "unresolved", "supported", 3], ["X2", "unresolved", "not testable here", 0]]
    assert "misprints corrected: contradicted, -0.5 a − b" in table.loc[0, "note"]
    assert "ours: no judge" in table.loc[1, "note"]
    text = as_text(table)
    assert text.startswith("X1  paper unresolved | ours supported: +4.00 points, 95 % interval 1.52 to 6.48, 3 seeds")
    assert "\n\nX2  paper unresolved | ours not testable here\n    a beats b (Table 9)\n" in text
    assert text.endswith("Our runs resolve 1 of 1 testable claims (1 supported, 1 not testable here).")


def test_an_unknown_paper_is_refused():
    with pytest.raises(PeftkitError, match="unknown paper 'zhou2023'; did you mean 'zhou2024'"):
        claims("zhou2023")
