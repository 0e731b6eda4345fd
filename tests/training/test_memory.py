"""Peak memory: it counts what was held at once since the start, also when it is freed again."""
import numpy as np
import pytest

from peftkit.training import memory
from peftkit.training.memory import PeakMemory

MEGABYTES = 200


def allocate():
    return np.ones(MEGABYTES * 125_000).sum()  # 8 bytes each


def test_an_allocation_raises_the_peak():
    peak = PeakMemory()
    before = peak.megabytes()
    allocate()
    assert peak.megabytes() >= before + 0.9 * MEGABYTES


@pytest.mark.skipif(not memory._STATUS.exists(), reason="only Linux can reset the peak")
def test_a_new_measurement_forgets_the_old_peak():
    first = PeakMemory()
    allocate()
    high = first.megabytes()
    assert PeakMemory().megabytes() <= high - 0.9 * MEGABYTES


def test_elsewhere_the_peak_of_the_process_is_given(monkeypatch, tmp_path):
    here = PeakMemory().megabytes()
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(memory, "_RESET", tmp_path / "folder" / "none")
    assert PeakMemory().megabytes() >= 0.9 * here
