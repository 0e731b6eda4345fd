"""The benchmark itself; its figure is in the README, measured with `peftkit bench trainer`."""
from peftkit import bench


def test_bench_trainer_gives_a_ratio_a_repeat_and_their_median(monkeypatch):
    monkeypatch.setattr(bench.trainer, "STEPS", 4)
    table = bench.bench_trainer("tiny-llava-s", repeats=1)
    assert list(table["repeat"]) == ["1", "median"]
    assert (table[["peftkit", "trainer", "ratio"]] > 0).all(axis=None)
