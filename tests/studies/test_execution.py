"""Runs are done once, by as many processes as asked, and what fails is said."""
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import joblib
import pytest
import torch

from peftkit.errors import PeftkitError
from peftkit.studies.outcome import RunsFailed
from peftkit.studies.store import RunStore
from peftkit.studies.workers import default_workers, environment

from .runs import config, log_of, run

RUNS = config.__module__


def test_inline_runs_once(tmp_path):
    configs = [config(tmp_path, seed=seed) for seed in range(3)]
    assert [outcome.status for outcome in run(configs, tmp_path, workers=0)] == ["done"] * 3
    assert [outcome.status for outcome in run(configs, tmp_path, workers=0)] == ["found"] * 3
    assert len(log_of(tmp_path)) == 3
    assert run([], tmp_path) == []


def test_failure_is_raised_at_the_end_and_not_stored(tmp_path):
    configs = [config(tmp_path, fail=True), config(tmp_path, seed=1)]
    with pytest.raises(RunsFailed, match="1 of 2 runs failed") as caught:
        run(configs, tmp_path, workers=0)
    assert '"fail":true' in str(caught.value) and "FloatingPointError: loss is nan at step 3" in str(caught.value)
    assert {outcome.status for outcome in caught.value.outcomes} == {"error", "done"}
    store = RunStore(tmp_path / "store")
    assert store.get(configs[0]) is None and store.get(configs[1])


def test_damaged_record_is_redone(tmp_path):
    run([config(tmp_path)], tmp_path, workers=0)
    record = next((tmp_path / "store").glob("*/record.json"))
    record.write_text(record.read_text()[:50])
    with pytest.warns(UserWarning, match="damaged record"):
        assert run([config(tmp_path)], tmp_path, workers=0)[0].status == "done"
    assert RunStore(tmp_path / "store").get(config(tmp_path))


def test_workers_are_separate_and_single_threaded_and_a_killed_run_is_redone(tmp_path):
    grid = [config(tmp_path, task, seed, sleep=0.2) for task in "xy" for seed in range(3)]
    bad = [config(tmp_path, "z", die=1), config(tmp_path, "z", 1, fail=True), config(tmp_path, "z", 2, die=9)]
    with pytest.raises(RunsFailed, match="2 of 9 runs failed") as caught:
        run([*bad, *grid], tmp_path, workers=2)
    assert Counter(outcome.status for outcome in caught.value.outcomes) == {"done": 7, "error": 2}
    assert "FloatingPointError" in str(caught.value) and "killed by SIGKILL" in str(caught.value)
    lines = log_of(tmp_path)
    assert Counter(seed for task, seed, *_ in lines if task == "z") == {"0": 2, "1": 1, "2": 3}
    assert len({line[2] for line in lines} - {str(os.getpid())}) >= 2 and {line[3] for line in lines} == {"1"}


def test_each_worker_sees_one_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    run([config(tmp_path, seed=seed, sleep=0.5) for seed in range(8)], tmp_path)
    lines = log_of(tmp_path)
    assert {line[4] for line in lines} == {"5", "7"} and len({(line[2], line[4]) for line in lines}) == 2


@pytest.mark.parametrize(("gpus", "workers"), [(0, joblib.cpu_count()), (1, 0), (4, 4)])
def test_there_is_a_worker_a_core_or_a_gpu_and_none_for_one_gpu(monkeypatch, gpus, workers):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert default_workers() == workers


@pytest.mark.parametrize(("wrong", "message"), [
    ({"executor": "slurm"}, "unknown executor 'slurm'; accepted: local, ray"),
    ({"address": "head:6379"}, "address is 'head:6379' with executor='local'"),
    ({"workers": -1}, "workers is -1"),
    ({"executor": "ray", "workers": 0}, "workers is 0"),
])  # fmt: skip
def test_wrong_input_is_refused_before_anything_runs(tmp_path, wrong, message):
    with pytest.raises(PeftkitError, match=message):
        run([config(tmp_path)], tmp_path, **wrong)
    assert not (tmp_path / "log").exists()


RACE = """
import signal
from {runs} import config, run
from pathlib import Path
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell started in the background
    folder = Path({folder!r})
    print(*sorted(outcome.status for outcome in run([config(folder, seed=n, sleep={sleep}) for n in range(6)], folder,
                                                    workers={workers})))
"""


def start(folder, workers, sleep=0.1):
    script = folder / f"race{workers}.py"
    script.write_text(RACE.format(runs=RUNS, folder=str(folder), workers=workers, sleep=sleep))
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    return subprocess.Popen([sys.executable, script], env=environment, cwd=root, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)  # fmt: skip


def test_two_processes_on_one_store_do_each_run_once(tmp_path):
    racers = [start(tmp_path, 0), start(tmp_path, 0)]
    statuses = [status for racer in racers for status in racer.communicate()[0].split()]
    assert Counter(statuses) == {"done": 6, "found": 6}
    assert sorted(line[1] for line in log_of(tmp_path)) == list("012345")


def test_interrupt_stops_workers_and_a_restart_does_the_rest(tmp_path):
    process = start(tmp_path, workers=1, sleep=0.5)
    store = RunStore(tmp_path / "store")
    while not list(store.records()):
        time.sleep(0.05)
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode and "KeyboardInterrupt" in errors
    worker = int(log_of(tmp_path)[0][2])
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finished = len(list(store.records()))
    assert 1 <= finished < 6
    outcomes = run([config(tmp_path, seed=seed, sleep=0.5) for seed in range(6)], tmp_path, workers=0)
    assert Counter(outcome.status for outcome in outcomes) == {"found": finished, "done": 6 - finished}


def test_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("PEFTKIT_TEST_A", "before")
    monkeypatch.delenv("PEFTKIT_TEST_B", raising=False)
    with environment({"PEFTKIT_TEST_A": "inside", "PEFTKIT_TEST_B": "inside"}):
        assert os.environ["PEFTKIT_TEST_A"] == os.environ["PEFTKIT_TEST_B"] == "inside"
    assert os.environ["PEFTKIT_TEST_A"] == "before" and "PEFTKIT_TEST_B" not in os.environ
