"""The benchmarks themselves, at small sizes; their figures are in the README."""
import copy
import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from peftkit import bench
from peftkit.bench import evaluation, gpu, grid, pairs, shapes, spider, steps, trainer
from peftkit.bench.flops import matrix_rate, step_flops
from peftkit.errors import PeftkitError
from peftkit.training import TrainConfig


@pytest.fixture
def small(monkeypatch):
    """Every shape is the tiny base, and there is little to do."""
    tiny = shapes.shaped(shapes.SMALL)
    for module in (trainer, evaluation, gpu, bench.packing, bench.compile):
        monkeypatch.setattr(module, "shaped", lambda *_: replace(tiny, model=copy.deepcopy(tiny.model)))
    monkeypatch.setattr(trainer, "SETTINGS", {("tiny-llava-s", 1): (8, 4, 1), ("llava-576", 5): (2, 5, 1)})
    monkeypatch.setattr(trainer, "matrix_rate", lambda *_: 1e11)
    monkeypatch.setattr(gpu, "matrix_rate", lambda *_: 1e11)
    monkeypatch.setattr(gpu, "PICTURES", 2)
    monkeypatch.setattr(gpu, "METHODS", {"lora": {"rank": 4}})
    monkeypatch.setattr(evaluation, "PICTURES", {"tiny-llava-s": 3, "llava-576": 2})


def test_ratios_are_of_their_own_pair(monkeypatch):
    clock = iter([0, 9, 9, 18, *(0, 1, 1, 3), *(0, 2, 2, 10), *(0, 1, 1, 4)])  # the first pair only warms up
    monkeypatch.setattr(pairs.time, "perf_counter", lambda: next(clock))
    found = pairs.alternate(lambda: None, lambda: None, 3)
    assert found == {"ours": 1, "theirs": 3, "ratio": 3, "lowest": 2, "highest": 4}


def test_a_table_is_kept_with_date_and_machine(tmp_path):
    table = pd.DataFrame([{"model": "m", "ratio": 2.5}]).set_index("model")
    bench.record(table, tmp_path / "deep" / "trainer.json")
    content = json.loads((tmp_path / "deep" / "trainer.json").read_text())
    assert content["table"] == [{"model": "m", "ratio": 2.5}]
    assert content["date"] and content["machine"]["threads"] == torch.get_num_threads() and content["packages"]["peft"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["trainer.json"]


def test_bench_trainer_has_a_row_a_setting(small):
    table = bench.bench_trainer(repeats=1)
    assert list(table.index) == [("tiny-llava-s", 1), ("llava-576", 5)]
    assert (table[["peftkit", "trainer", "ratio"]] > 0).all(axis=None)


def test_bench_evaluation_has_a_row_a_model(small):
    table = bench.bench_evaluation(repeats=1)
    assert len(table) == 2 and (table["ratio"] > 0).all()


def test_bench_gpu_says_that_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PeftkitError, match="no GPU is visible to torch; accepted: an NVIDIA card"):
        bench.bench_gpu()


def test_bench_gpu_runs_to_its_end_where_its_device_is_the_cpu(small):
    table = gpu._bench(1, "tiny-llava-s", "cpu")
    assert list(table.index) == [("lora", 1), ("lora", 5)] and set(table["card"]) == {"cpu"}
    assert (table[["peftkit", "trainer", "peftkit_gb", "trainer_gb"]] > 0).all(axis=None)


def test_bench_spider_is_the_seconds_of_spider_over_those_of_full_tuning(monkeypatch):
    monkeypatch.setattr(steps, "STEPS", 1)
    assert (bench.bench_spider(repeats=1) > 0).all(axis=None)
    seconds = {"spider": iter([9, 2, 3, 8]), "language": iter([1, 2, 2, 2])}  # the first pair only warms up
    monkeypatch.setattr(spider, "seconds_a_step", lambda base, rows, batch, method, **part: next(seconds[method]))
    assert bench.bench_spider(repeats=3).loc["tiny-llava-s"].to_dict() == {"step": 1.5, "fastest": 1, "slowest": 4}


def test_bench_grid_wants_a_checkout(tmp_path):
    with pytest.raises(PeftkitError, match="holds no peftkit with studies; accepted: a checkout"):
        grid.bench_grid(1, tmp_path)


def test_packing_changes_nothing_but_time(small):
    model, rows = bench.packing._setting()
    (loss, gradients), (expected, separate) = (bench.packing._step(model, rows, packing) for packing in (True, False))
    assert loss == pytest.approx(expected, rel=1e-5) and gradients.keys() == separate.keys()


# ---- operations of a step --------------------------------------------------------------------------------------------

def test_operations_of_a_step_are_those_that_torch_counts():
    """On rows of one length, so that nothing is a pad; torch counts attention without its mask."""
    from torch.utils.flop_counter import FlopCounterMode

    from peftkit.training.features import cache_features
    from peftkit.training.forward import answer_loss

    base = shapes.shaped(shapes.SMALL)
    rows = shapes.rows_for(base, 40, 1)
    common = max(set(rows.lengths()), key=rows.lengths().count)
    chosen = [r for r, length in enumerate(rows.lengths()) if length == common][:4]
    cache_features(base.model, rows)
    model = trainer._injected(base).train()
    batch = rows.training_batch(chosen)
    with FlopCounterMode(display=False) as counter:
        answer_loss(model, batch).backward()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    learned = (batch["labels"] >= 0).sum().item()
    ours = step_flops(model, len(chosen) * common, learned, len(chosen) * common ** 2, trainable)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.2)  # the first block needs no gradient of its input


def test_packs_have_fewer_operations_than_rows_apart():
    base = shapes.shaped(shapes.SMALL)
    rows = shapes.rows_for(base, 4, 5)
    model, config = trainer._injected(base), TrainConfig(epochs=1)
    packed = trainer.operations(model, rows, config)
    rows.picture_ids = [str(number) for number in range(len(rows))]
    assert packed < trainer.operations(model, rows, config)


def test_the_rate_of_matrix_products_is_positive_and_finite():
    assert 1e8 < matrix_rate(size=64, seconds=0.01) < 1e15
