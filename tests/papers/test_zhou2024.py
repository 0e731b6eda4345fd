"""The paper's printed tables and the grid of the main study."""
from types import SimpleNamespace

import pandas as pd
import pytest

import peftkit.papers.records as records_module
from peftkit.errors import PeftkitError
from peftkit.papers.zhou2024 import (
    RATES, SEEN, TIERS, UNSEEN, main_records, main_study, paper_shares, paper_table, printed_table, rates,
    unseen_and_seen)
from peftkit.studies import Record, bundle
from peftkit.studies.store import hash_config

TABLES = ("table01_main", "table02_location_llava7b", "table03_data_scale", "table04_overfit_transfer", "table05_mmhal",
          "table06_size_stability", "table07_manual_hallucination", "table11_hyperparameters",
          "table12_vision_encoder", "table13_location_qwen", "table14_lr_stability", "table15_efficiency")
ARM = ["model", "method", "connector"]


# ── printed numbers ──

@pytest.mark.parametrize("name", TABLES)
def test_every_printed_table_loads(name):
    table = printed_table(name)
    assert len(table) and "note" in table.columns


def test_an_unknown_table_is_refused_with_the_known_ones():
    with pytest.raises(PeftkitError, match="unknown table of zhou2024 'table1_main'; did you mean 'table01_main'"):
        printed_table("table1_main")


def test_all_32_printed_averages_follow_from_the_printed_scores():
    table = printed_table("table01_main")
    printed = table.query("dataset == 'avg'").set_index(ARM)["value"]
    scores = table.query("dataset != 'avg'").pivot(index=ARM, columns="dataset", values="value")
    unseen = tuple("scienceqa_img" if name == "scienceqa" else name for name in UNSEEN)
    means = unseen_and_seen(scores, unseen, SEEN)
    assert len(printed) == 32
    gaps = (means["Avg"] - printed.reindex(means.index)).abs()
    assert gaps.max() <= 0.05 + 1e-9, gaps.idxmax()
    assert means["Avg"].to_numpy() == pytest.approx(((5 * means["U"] + 3 * means["S"]) / 8).to_numpy())


@pytest.mark.parametrize("method, connector, unseen, seen", [  # facts 4.1, means over the four models
    ("adapter", "frozen", 82.335, 67.22), ("lora", "frozen", 83.35, 67.21), ("ia3", "frozen", 61.265, 68.56),
    ("prefix-peft", "frozen", 63.76, 67.31), ("ia3", "tuned", 76.30, 67.48)])
def test_model_means_are_those_of_figure_2(method, connector, unseen, seen):
    means = 100 * paper_table().groupby(level=["method", "connector"]).mean().loc[(method, connector)]
    assert (means["U"], means["S"]) == (pytest.approx(unseen, abs=0.005), pytest.approx(seen, abs=0.01))


def test_shares_of_table_15_follow_from_shapes_alone():
    found = paper_shares().set_index("method")
    printed = printed_table("table15_efficiency").query("model == 'llava_1.5_7b' and metric == 'trainable_percent'")
    printed = printed.pivot(index="method", columns="connector", values="value").astype(float)
    assert (found["formula"] == found["modules"]).all() and (found["connector"] == 20_979_712).all()
    for connector in ("frozen", "tuned"):
        assert found[connector].round(3).to_dict() == printed[connector].to_dict()


# ── the grid ──

@pytest.mark.parametrize("method", RATES)
def test_every_rate_of_the_study_is_the_best_of_the_four_tried(method):
    scores = rates.tried().loc[method].dropna()
    assert sorted(scores.index) == sorted(rates.GRID[method]) and len(scores) == 4
    assert RATES[method]["learning_rate"] == scores.idxmax()



@pytest.fixture
def no_models(monkeypatch):
    monkeypatch.setattr("peftkit.models.load", lambda name: SimpleNamespace(hash=f"hash of {name}"))


@pytest.mark.parametrize("tier, sizes", [("smoke", [2 * 10]), ("laptop", [8 * 46] * 3)])
def test_grid_sizes(tier, sizes, no_models, tmp_path):
    studies = main_study(tier, tmp_path)
    assert [len(study.configs()) for study in studies] == sizes
    assert [study.bases for study in studies] == [(base,) for base in TIERS[tier].seeds]
    for study in studies:
        configs = study.configs()
        assert sum(config["method"] == "none" for config in configs) == len(TIERS[tier].tasks)
        assert {config["train_size"] for config in configs} == {TIERS[tier].train_size}
        trained = [config["train"] for config in configs if config["train"]]
        assert {settings["epochs"] for settings in trained} == {TIERS[tier].epochs}


@pytest.mark.parametrize("call", [lambda tier: main_study(tier, "runs"), main_records])
def test_an_unknown_tier_is_refused_with_the_accepted_ones(call):
    with pytest.raises(PeftkitError, match="unknown tier 'lapdog'; did you mean 'laptop'.* accepted: laptop, smoke"):
        call("lapdog")


def test_an_unknown_way_to_runs_is_refused():
    with pytest.raises(PeftkitError, match="unknown value of runs 'comitted'; did you mean 'committed'"):
        main_records("laptop", "comitted")


def test_missing_committed_records_are_named_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(records_module, "CHECKOUT", tmp_path)
    with pytest.raises(PeftkitError, match="zhou2024-tiny-llava-s.parquet.*`peftkit figures --accept`"):
        main_records("laptop")


def test_committed_records_are_read_base_by_base(monkeypatch, tmp_path):
    monkeypatch.setattr(records_module, "CHECKOUT", tmp_path)
    for base in TIERS["laptop"].seeds:
        config = {"study": "zhou2024", "base": base, "task": "vizwiz"}
        content = {"run_info": {"config": config, "config_hash": hash_config(config)}}
        answers = pd.DataFrame({"question_id": ["a"], "prediction": ["red"], "score": [1.0]})
        bundle(tmp_path / "figures" / "runs" / f"zhou2024-{base}.parquet", [Record(content, answers)])
    assert [record.config["base"] for record in main_records("laptop")] == list(TIERS["laptop"].seeds)
