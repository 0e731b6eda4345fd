"""Rows and figures of notebook 03c, on printed numbers and on made-up runs with known answers."""
import math

import pandas as pd
import pytest

from peftkit.evaluation import chair
from peftkit.papers.claims import Claim
from peftkit.papers.tidy import over_seeds
from peftkit.papers.zhou2024 import efficiency, printed_table
from peftkit.papers.zhou2024.cells import PAIRS, our_cells, printed_cells
from peftkit.papers.zhou2024.claims.predicates import ADAPTER, LORA, TUNED, lead
from peftkit.papers.zhou2024.watched_plots import (
    NAMED, from_the_mean, losses, lowest, operations, panels, rows_of, score_and_share, seeds_to_resolve, spoken)
from peftkit.stats import mean_interval, seeds_to_resolve as planned

METHODS = ("lora", "adapter", "ia3", "prefix-peft")
EPOCHS = tuple(f"epoch {number}" for number in (1, 2, 3, 4))


@pytest.fixture
def transfer(frame_of):
    """Made-up transfer runs: adapter 0.1 above the others at every pair, epoch and seed, beside a main study."""
    main = frame_of(lambda *_: 0.5).assign(study="zhou2024")
    rows = [{"study": "zhou2024-transfer", "base": "tiny-llava-s", "method": method, "connector": "tuned", "task": pair,
             "epoch": epoch, "seed": seed, "score": 0.4 + 0.1 * (method == "adapter") + 0.001 * seed}
            for method in METHODS for pair in PAIRS for epoch in (1, 2, 3, 4) for seed in (42, 43, 44)]
    return pd.concat([main, pd.DataFrame(rows)], ignore_index=True)


@pytest.fixture
def pairs(transfer):
    return rows_of({"ours": our_cells(transfer), "paper": printed_cells()}, "zhou2024-transfer", PAIRS, EPOCHS)


# ── rows ──

def test_both_sides_of_transfer_have_all_their_rows(pairs):
    assert pairs.groupby("side").size().to_dict() == {"ours": 4 * 6 * 4 * 3, "paper": 4 * 6 * 4}


@pytest.mark.parametrize("method, values", [  # facts 4.6, which reads figure 4 off the printed table
    ("adapter", [4.6, 7.8, 0.4, 2.5, 1.4, 2.5]), ("prefix-peft", [-14.7, -7.4, -5.0, -1.7, -11.4, -1.9])])
def test_differences_from_the_mean_are_those_of_figure_4(pairs, method, values):
    found = from_the_mean(pairs).query("side == 'paper' and method == @method").set_index("task")["score"]
    order = ["iconqa_txt>scienceqa", "iconqa_txt>vizwiz", "scienceqa>iconqa_txt", "scienceqa>vizwiz",
             "vizwiz>scienceqa", "vizwiz>iconqa_txt"]
    assert found[order].tolist() == pytest.approx(values, abs=0.051)


def test_our_differences_are_formed_inside_each_seed(pairs):
    ours = over_seeds(from_the_mean(pairs).query("side == 'ours'"), ["method", "task"])
    adapter = ours.query("method == 'adapter' and row == 'mean'")
    assert adapter["score"].tolist() == pytest.approx([7.5] * 6)
    assert (adapter["high"] - adapter["low"]).max() < 1e-6  # the seeds' own levels cancel


def test_means_over_seeds_carry_t_intervals_and_every_seed():
    rows = pd.DataFrame({"method": "lora", "seed": [1, 1, 2, 3], "score": [1.0, 3.0, 5.0, 9.0]})
    found = over_seeds(rows, ["method"]).set_index("row")
    interval = mean_interval([2.0, 5.0, 9.0])  # two rows of a seed are one number
    assert found.loc["mean", ["score", "low", "high"]].tolist() == pytest.approx(
        [interval.mean, interval.low, interval.high])
    assert found.loc[["1", "2", "3"], "score"].tolist() == [2, 5, 9]
    alone = over_seeds(rows[rows["seed"] == 3], ["method"])
    assert len(alone) == 2 and alone[["low", "high"]].isna().all(axis=None)


def looked(curves):
    """A row an epoch: method -> losses."""
    return pd.DataFrame([{"task": "vizwiz", "method": method, "seed": 1, "epoch": epoch, "loss": loss}
                         for method, curve in curves.items() for epoch, loss in enumerate(curve, start=1)])


def test_a_minimum_is_late_where_fewer_than_four_epochs_are_left():
    curves = {"lora": [3, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9], "adapter": [9, 8, 7, 6, 5, 4, 3, 2, 3, 3, 3, 3],
              "ia3": [9, 8, 7, 6, 5, 4, 3, 2, 1, 3, 3, 3]}
    found = lowest(looked(curves)).set_index("method")
    assert found["epoch"].to_dict() == {"lora": 3, "adapter": 8, "ia3": 9}
    assert found["late"].to_dict() == {"lora": False, "adapter": False, "ia3": True}
    assert (found["end"] / found["loss"]).tolist() == [9, 1.5, 3]


def test_things_named_follow_from_recall_and_wrong_share():
    truth = [["a red star and a blue 7"], ["a green cat"]]
    found = chair(["a red star and a moon", "star"], truth, ("star", "moon", "7", "cat"))
    looks = pd.DataFrame([{"method": "lora", "task": "vizwiz", "seed": 1, "hallucinated": found.chair_s,
                           "mentions": found.chair_i, "recall": found.recall}])
    said = spoken(looks, found.present.mean()).set_index("measure")["score"]
    assert said[NAMED] == pytest.approx(found.mentions.mean())


def test_an_unresolved_claim_tells_its_seeds(frame_of):
    gaps = {42: 0.01, 43: 0.05, 44: -0.02}
    frame = frame_of(lambda method, connector, task, seed: 0.5 + gaps.get(seed, 0) * (method == "adapter"))
    finding = Claim("X", "a sentence", where="", unit="points", margin=0, predicate=lead(
        ADAPTER, LORA, model="llava_1.5_7b", **TUNED)).judge(our_cells(frame.assign(study="zhou2024")))
    ledger = pd.DataFrame([{"id": "X", "verdict_ours": finding.verdict, "note": finding.note},
                           {"id": "Y", "verdict_ours": "supported", "note": ""},
                           {"id": "Z", "verdict_ours": "unresolved", "note": "no number of seeds would resolve it"}])
    values = 100 * pd.Series(gaps)
    assert seeds_to_resolve(ledger).to_dict() == {"X": planned(values.mean(), values.std()), "Z": math.inf}


# ── figures ──

@pytest.mark.parametrize("sides", [["ours", "paper"], ["paper"], []])
def test_panels_show_the_sides_that_there_are(pairs, sides):
    data = over_seeds(pairs[pairs["side"].isin(sides)], ["side", "method", "task"])
    lines = pd.DataFrame([{"side": "ours", "task": PAIRS[0], "method": "none", "score": 10.0}])
    axes = panels(data, "task", lines=lines).axes
    assert [axis.get_title("left") + axis.get_title() for axis in axes if axis.containers] == sides
    assert all(len(axis.containers) == len(METHODS) for axis in axes[:len(sides)])


def test_the_loss_figure_shows_every_minimum():
    looks = looked({method: [3, 2, 1, 2, 3, 4] for method in METHODS})
    figure = losses(over_seeds(looks, ["task", "method", "epoch"], "loss"), lowest(looks), {"vizwiz": 5.0})
    assert [len(line.get_xdata()) for line in figure.axes[1].lines] == [1] * 4


# ── efficiency ──

def test_shares_and_scores_of_both_sides(frame_of):
    frame = frame_of(lambda *_: 0.5).assign(study="zhou2024", trainable=2, total=100)
    found = efficiency.share_and_score(frame)
    ours, paper = (found[found["side"].str.startswith(side)] for side in ("ours", "paper"))
    assert (ours["share"] == 2).all() and (ours["score"] == 50).all() and len(ours) == 4 * 2 * 3 + 1
    printed = printed_table("table15_efficiency").query("metric == 'mean_of_8_datasets'")
    assert sorted(paper["score"]) == sorted(printed["value"].astype(float))
    figure = score_and_share(over_seeds(paper, ["side", "method", "connector", "share"]).query("row == 'mean'"),
                             pd.DataFrame(columns=["side", "method", "score"]))
    assert len(figure.axes) == 2


def test_operations_and_measured_steps_are_those_of_the_studys_methods():
    counted = pd.DataFrame({"method": METHODS, "ratio": 1.3})
    figure = operations(efficiency.implied_tokens(), counted)
    assert len(figure.axes[0].lines) == 16
    table, made = efficiency.measured_steps()
    assert list(table.index) == [*METHODS, "language"] and {"date", "machine", "packages"} <= made.keys()
