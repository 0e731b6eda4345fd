"""The experiments beside the main table: their grids, the runs they share with it, and runs that are looked at."""
from types import SimpleNamespace

import pandas as pd
import pytest

from peftkit import load
from peftkit.errors import PeftkitError
from peftkit.papers.zhou2024 import RATES, SIZES, efficiency, looks, studies, study_records, tidy
from peftkit.papers.zhou2024.cells import our_cells
from peftkit.papers.zhou2024.claims import CLAIMS
from peftkit.papers.zhou2024.records import past_the_minimum
from peftkit.papers.zhou2024.varied import GRID, PAPER_RATES, VARIED
from peftkit.papers.zhou2024.watched import PROBES, run_one, train_and_test
from peftkit.studies import Record
from peftkit.studies.store import hash_config



@pytest.fixture
def configs(monkeypatch, tmp_path):
    """Make the configurations of a study: name, tier -> list; no model is loaded."""
    monkeypatch.setattr("peftkit.models.load", lambda name: SimpleNamespace(hash=f"hash of {name}"))
    return lambda name, tier="laptop": [c for grid in studies(name, tier, tmp_path) for c in grid.configs()]


# ── grids ──

@pytest.mark.parametrize("name, runs", [  # placements x methods x tasks x seeds, and so on
    ("location", 2 * 3 * 7 * 5 * 2), ("data", 2 * 4 * 8 * 5), ("size", 3 * 2 * (3 * 7 + 2)),
    ("rates", 2 * ((4 * 4 - 2) * 7 + 4 * 2)), ("vision", 4 * 4 * 5), ("vocabulary", 2 * 4 * 8 * 3),
    ("transfer", 3 * 4 * 5), ("hallucination", 2 * (4 * 5 + 1))])
def test_every_study_has_its_runs_once(name, runs, configs):
    hashes = [hash_config(config) for config in configs(f"zhou2024-{name}")]
    assert len(hashes) == len(set(hashes)) == runs


@pytest.mark.parametrize("name", VARIED)
def test_no_study_repeats_a_run_of_the_main_study(name, configs):
    def what(config):
        return hash_config({**config, "study": ""})

    if name == "zhou2024-hallucination":  # the same runs, but their models are asked more
        assert {config["study"] for config in configs(name)} == {name}
    else:
        assert not {what(config) for config in configs(name)} & {what(config) for config in configs("zhou2024")}


@pytest.mark.parametrize("name", ["location", "data", "size", "rates", "vision"])
def test_what_is_not_varied_is_as_in_the_main_study(name, configs):
    main = {config["method"]: config for config in configs("zhou2024") if config["base"] == "tiny-llava-s"
            and config["options"].get("connector") == "tuned"}
    for config in configs(f"zhou2024-{name}"):
        usual, varied = main[config["method"]], {"data": {"train_size"}, "rates": {"learning_rate"}}.get(name, set())
        assert config["train_size"] == usual["train_size"] or "train_size" in varied
        assert config["test_size"] == usual["test_size"]
        assert {key for key in usual["train"] if config["train"][key] != usual["train"][key]} <= varied
        changed = {key for key in config["options"] if config["options"][key] != usual["options"].get(key)}
        assert changed <= {"placement", "rank", "bottleneck", "tokens", "vision"}


def test_stability_is_studied_over_seven_seeds(configs):
    for name, methods in (("size", set(SIZES) - {"ia3"}), ("rates", set(SIZES))):
        frame = pd.DataFrame([{**c, "rate": c["train"]["learning_rate"], "size": str(c["options"])}
                              for c in configs(f"zhou2024-{name}") + configs("zhou2024")
                              if c["base"] == "tiny-llava-s" and c["method"] in methods and c["task"] == "okvqa"
                              and c["options"].get("connector") == "tuned"])
        seeds = frame.groupby(["method", "rate", "size"])["seed"].nunique()
        assert (seeds == 7).all() and set(frame["method"]) == methods


def test_the_papers_rates_are_on_the_grid_in_the_papers_ratio():
    assert set(PAPER_RATES.values()) <= set(GRID) and PAPER_RATES["lora"] == RATES["lora"]["learning_rate"]
    assert [rate / 50 for rate in GRID] == pytest.approx([2e-4, 5e-5, 1e-5, 5e-6])


def test_the_smoke_tier_has_one_task_and_seed(configs):
    for name in VARIED:
        assert len({(config["task"], config["seed"]) for config in configs(name, "smoke") if config["seed"]}) <= 1


@pytest.mark.parametrize("call", [lambda name: studies(name, "laptop", "runs"), lambda name: study_records(name, "laptop")])
def test_an_unknown_study_is_refused(call):
    with pytest.raises(PeftkitError, match="unknown study 'zhou2024-sizes'; did you mean 'zhou2024-size'"):
        call("zhou2024-sizes")


# ── main runs take their place in other studies ──

def test_a_main_run_is_the_usual_level_of_what_a_study_varies(frame_of):
    main = frame_of(lambda *_: 0.5, seeds=(1, 2, 3)).assign(study="zhou2024")
    halves = main[(main["connector"] == "tuned")]
    part = pd.concat([halves.assign(study="zhou2024-data", train_size=size, score=score)
                      for size, score in ((80, 0.2), (400, 0.4))])
    cells = our_cells(pd.concat([main.assign(train_size=800), part]))
    means = [cells.mean("zhou2024-data", "llava_1.5_7b", "lora", "tuned", "okvqa", f"train_size {level}").mean()
             for level in (1, 2, 3)]
    assert means == pytest.approx([20, 40, 50]) and not cells.missing
    assert CLAIMS["E1"].judge(cells).verdict == "supported"


def test_a_place_that_is_not_said_is_the_methods_usual_one(frame_of):
    main = frame_of(lambda *_: 0.5, seeds=(1, 2)).assign(study="zhou2024")
    part = main[(main["method"] == "adapter") & (main["connector"] == "tuned")]
    cells = our_cells(pd.concat([main, part.assign(study="zhou2024-location", placement="both", score=0.3)]))
    means = {place: cells.mean("zhou2024-location", "llava_1.5_7b", "adapter", "tuned", "okvqa", f"placement {place}")
             for place in ("mlp", "both", "attention")}
    assert means["mlp"].tolist() == [50, 50] and means["both"].tolist() == [30, 30] and means["attention"].empty


# ── runs that are looked at ──

@pytest.mark.parametrize("losses, first", [([5, 4, 3, 2, 3, 4, 5, 6, 7, 8, 9, 9], 5), ([1] * 12, 2),
                                           ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0], 9)])
def test_four_epochs_past_the_lowest_loss(losses, first):
    rows = past_the_minimum([{"epoch": epoch, "loss": loss} for epoch, loss in enumerate(losses, start=1)])
    assert [row["epoch"] for row in rows] == list(range(first, first + 4))


@pytest.fixture
def watched():
    """A real run at the smallest size: name of the study, method -> its record."""
    def run(name, method, task, epochs):
        train = {"epochs": epochs, "batch_size": 8, "learning_rate": 1e-2} if method != "none" else {}
        options = {"connector": "tuned"} if method != "none" else {}
        config = {"study": name, "base": "tiny-llava-s", "base_hash": load("tiny-llava-s").hash, "method": method,
                  "options": options, "task": task, "train_size": 8, "test_size": 6, "seed": 1, "train": train}
        parts, predictions = run_one(config)
        content = {"run_info": {"config": config, "config_hash": hash_config(config)}, **parts}
        return Record(content, predictions)

    return run


def test_a_long_run_becomes_rows_of_transfer_and_of_captions(watched):
    record = watched("zhou2024-transfer", "lora", "iconqa_txt", epochs=8)
    frame = tidy([record])
    transfer = frame[frame["study"] == "zhou2024-transfer"]
    assert transfer["task"].unique().tolist() == ["iconqa_txt>scienceqa", "iconqa_txt>vizwiz"]
    assert sorted(transfer["epoch"].unique()) == [1, 2, 3, 4] and len(transfer) == 8
    captions = frame[frame["study"] == "zhou2024-captions"]
    assert captions["epoch"].tolist() == [2, 4, 6, 8] and set(captions["task"]) == {"hallucinated"}
    rows = looks([record])
    assert rows["epoch"].tolist() == list(range(1, 9)) and rows["loss"].notna().all()
    assert rows["scienceqa"].between(0, 1).all()
    assert captions["score"].tolist() == rows["hallucinated"].dropna().tolist()


@pytest.mark.parametrize("method, epochs", [("ia3", 2), ("none", 0)])
def test_a_probed_run_becomes_a_row_of_truth_and_one_of_hallucination(method, epochs, watched):
    record = watched("zhou2024-hallucination", method, "flickr30k", epochs)
    frame = tidy([record]).set_index("task")
    assert list(frame.index) == ["truth", "hallucinated"] and set(frame["tuned_on"]) == {"flickr30k"}
    last = record.content["metrics"]["epochs"][-1]
    assert last["epoch"] == epochs and frame.loc["truth", "score"] == pytest.approx(sum(last[p] for p in PROBES) / 3)
    assert 0 <= last["hallucinated"] <= 1 and "scienceqa" not in last


def test_the_looks_do_not_change_the_run(watched):
    record = watched("zhou2024-transfer", "lora", "vizwiz", epochs=4)
    parts, predictions = train_and_test(record.config)
    assert parts["train_info"]["losses"] == record.content["train_info"]["losses"]
    assert predictions.equals(record.predictions)


# ── efficiency ──

def test_table_15_does_not_follow_from_one_number_of_tokens():
    table = efficiency.implied_tokens()
    assert len(table) == 16
    assert table["tokens"].min() == pytest.approx(88_000, rel=0.01)  # facts section 2
    assert table["tokens"].max() == pytest.approx(107_000, rel=0.01)


def test_a_real_step_takes_more_than_the_papers_formula_says():
    table = efficiency.counted_flops(rows=4).set_index("method")
    assert (table["ratio"] > 1.2).all() and (table["ratio"] < 2).all()  # gradients pass through frozen layers too
