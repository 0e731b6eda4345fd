"""Runs are done once, by as many processes as asked, and what fails is said."""
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from peftkit.studies.execution import RunsFailed, _Queue, environment, execute
from peftkit.studies.store import RunStore

HERE = __name__
ANSWERS = pd.DataFrame({"question_id": ["a"], "prediction": ["red"], "score": [1.0]})


def config(folder, task="vizwiz", seed=0, base="tiny", **options):
    return {
        "study": str(folder), "base": base, "base_hash": "0", "method": "lora", "options": options,
        "task": task, "train_size": 1, "test_size": 1, "seed": seed, "train": {},
    }  # fmt: skip


def fake_run(config):
    """Leave a line in the study's log; fail, die or dawdle if an option says so."""
    options = config["options"]
    with open(Path(config["study"]) / "log", "a") as log:
        log.write(f"{config['task']} {config['seed']} {os.getpid()} {os.environ.get('OMP_NUM_THREADS')}\n")
    if "fail" in options:
        raise FloatingPointError("loss is nan at step 3")
    if "die" in options:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(options.get("sleep", 0))
    train = {
        "status": "success", "train_time": 1.0, "num_trainable_params": 1, "num_total_params": 2, "parameters": {},
        "peak_memory_mb": 1.0, "losses": [], "samples_per_second": 1.0, "steps": 1,
    }  # fmt: skip
    metrics = {"metric": "exact_match", "score": 1.0, "num_examples": 1, "eval_time": 0.1}
    return {"train_info": train, "metrics": metrics, "meta_info": {}}, ANSWERS


def log_of(folder):
    return [line.split() for line in (folder / "log").read_text().splitlines()]


def run(configs, folder, **options):
    return execute(configs, RunStore(folder / "store"), progress=False, run_one=f"{HERE}:fake_run", **options)


def test_inline_runs_once(tmp_path):
    configs = [config(tmp_path, seed=seed) for seed in range(3)]
    assert [outcome.status for outcome in run(configs, tmp_path, workers=0)] == ["done"] * 3
    assert [outcome.status for outcome in run(configs, tmp_path, workers=0)] == ["found"] * 3
    assert len(log_of(tmp_path)) == 3
    assert run([], tmp_path) == []


def test_queue_keeps_a_worker_on_its_base_and_task():
    grid = [config("", task, seed, base) for base in "AB" for task in "xy" for seed in range(2)]
    queue, last, order = _Queue(grid), None, []
    while job := queue.take(last, [config("", "x", 9, "A")]):
        last = job[0]
        order.append(last["base"] + last["task"])
    assert order[:2] == ["Ay"] * 2 or order[:2] in (["Bx"] * 2, ["By"] * 2)
    assert order[-2:] == ["Ax"] * 2, "what another worker is at comes last"
    assert sum(before != after for before, after in zip(order, order[1:])) == 3


def test_busy_runs_come_last_and_are_waited_for():
    queue = _Queue([config("")])
    queue.postponed.append(config("", seed=1))
    assert [queue.take(None, [])[1] for _ in range(2)] == [False, True]
    assert queue.take(None, []) is None


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


def test_workers_are_separate_single_threaded_and_survive_a_death(tmp_path):
    grid = [config(tmp_path, task, seed, sleep=0.2) for task in "xy" for seed in range(3)]
    with pytest.raises(RunsFailed, match="killed by SIGKILL") as caught:
        run([config(tmp_path, "z", die=True), config(tmp_path, "z", 1, fail=True), *grid], tmp_path, workers=2)
    assert Counter(outcome.status for outcome in caught.value.outcomes) == {"done": 6, "error": 2}
    assert "FloatingPointError" in str(caught.value)
    lines = log_of(tmp_path)
    assert len(lines) == 8 and len({line[2] for line in lines}) >= 2
    assert str(os.getpid()) not in {line[2] for line in lines} and {line[3] for line in lines} == {"1"}


RACE = """
from {here} import config, run
from pathlib import Path
if __name__ == "__main__":
    folder = Path({folder!r})
    print(*sorted(outcome.status for outcome in run([config(folder, seed=n, sleep={sleep}) for n in range(6)], folder,
                                                    workers={workers})))
"""


def start(folder, workers, sleep=0.1):
    script = folder / f"race{workers}.py"
    script.write_text(RACE.format(here=HERE, folder=str(folder), workers=workers, sleep=sleep))
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    return subprocess.Popen([sys.executable, script], env=environment, cwd=root, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)  # fmt: skip


def test_two_processes_on_one_store_do_each_run_once(tmp_path):
    racers = [start(tmp_path, 0), start(tmp_path, 0)]
    statuses = [status for racer in racers for status in racer.communicate()[0].split()]
    assert Counter(statuses) == {"done": 6, "found": 6}
    assert sorted(line[1] for line in log_of(tmp_path)) == list("012345")


def test_interrupt_stops_workers_and_keeps_what_is_finished(tmp_path):
    process = start(tmp_path, workers=1, sleep=1)
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
        assert 1 <= len(list(store.records())) < 6


def test_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("PEFTKIT_TEST_A", "before")
    monkeypatch.delenv("PEFTKIT_TEST_B", raising=False)
    with environment({"PEFTKIT_TEST_A": "inside", "PEFTKIT_TEST_B": "inside"}):
        assert os.environ["PEFTKIT_TEST_A"] == os.environ["PEFTKIT_TEST_B"] == "inside"
    assert os.environ["PEFTKIT_TEST_A"] == "before" and "PEFTKIT_TEST_B" not in os.environ
