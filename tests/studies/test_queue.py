"""The order of the runs: longest first, each worker on what it has loaded, none idle at the end."""
import heapq
import random

import pytest

from peftkit.studies.estimates import Estimates, weight_bytes, work
from peftkit.studies.outcome import Outcome
from peftkit.studies.queue import RETRIES, Queue
from peftkit.studies.store import RunStore

from .runs import config, fake_run

LOADING = 5  # a third of a mean run, when a worker turns to another base or task


def order(queue, worker="w"):
    """Every run in the order in which one worker does them."""
    runs = []
    while job := queue.take(worker):
        runs.append(job[0])
        queue.end(worker, Outcome(job[0], "found"))
    return runs


def test_a_worker_stays_on_its_base_and_task_and_leaves_those_of_others_for_last():
    queue = Queue([config("", task, seed, base) for base in "AB" for task in "xy" for seed in range(2)], workers=2)
    queue.take("other")
    loaded = [run["base"] + run["task"] for run in order(queue)]
    assert loaded == ["Ay"] * 2 + loaded[2:6] + ["Ax"], "the base that it has first, what the other is at last"
    assert sorted(loaded[2:6]) == ["Bx", "Bx", "By", "By"] and loaded[2] == loaded[3]


def test_longest_runs_come_first_within_a_task():
    grid = [config("", "x", epochs=epochs) for epochs in (1, 3, 2, 40)]
    assert [run["train"]["epochs"] for run in order(Queue(grid))] == [40, 3, 2, 1]


@pytest.mark.parametrize(("epochs", "next_task"), [(40, "y"), (20, "x")])
def test_a_run_longer_than_what_each_worker_has_left_comes_before_what_is_loaded(epochs, next_task):
    short = [config("", "x", seed, epochs=5) for seed in range(4)]
    queue = Queue([config("", "x", epochs=50), *short, config("", "y", epochs=epochs)], workers=2)
    queue.end("w", Outcome(queue.take("w")[0], "found"))
    assert queue.take("w")[0]["task"] == next_task


def test_busy_runs_come_last_and_only_a_patient_worker_waits_for_them():
    queue = Queue([config(""), config("", seed=1)])
    first, wait = queue.take("w")
    assert not wait and queue.end("w", Outcome(first, "busy")) is None
    second, wait = queue.take("w")
    assert not wait and queue.end("w", Outcome(second, "done", 1.0, 1.0))
    assert queue.take("w", patient=False) is None and not queue.finished
    assert queue.take("w") == (first, True)
    queue.end("w", Outcome(first, "found"))
    assert queue.finished and queue.take("w") is None


def test_a_killed_run_is_done_again_and_then_given_up():
    queue = Queue([config("")])
    for _ in range(RETRIES):
        assert queue.end("w", Outcome(queue.take("w")[0], "killed")) is None
    assert queue.end("w", Outcome(queue.take("w")[0], "killed")).status == "error"
    assert queue.finished and queue.statuses == {"error": 1}


def test_expected_seconds_come_from_the_most_alike_runs_in_the_store(tmp_path):
    store, done = RunStore(tmp_path), config("", "x", epochs=2)
    store.put(done, *fake_run(config(tmp_path)))  # 2 seconds for 3 x 2 + 1 examples
    (tmp_path / "0123").mkdir()
    (tmp_path / "0123" / "record.json").write_text("damaged")
    estimates = Estimates(store)
    assert estimates.seconds(config("", "y", epochs=4, base="other")) == pytest.approx(2 / 7 * 13)
    estimates.learn(config("", "x", method="ia3", epochs=2), 7.0)
    assert estimates.seconds(done) == pytest.approx(2.0)
    assert estimates.seconds(config("", "x", method="ia3")) == pytest.approx(4.0)
    assert 2 / 7 * 4 < estimates.seconds(config("", "x", method="none")) < 4.0, "between the two on that task"


def test_without_measurements_the_work_ranks_runs():
    assert Estimates().seconds(config("", epochs=3)) == work(config("", epochs=3)) == 10
    assert work(config("", base="tiny-llava-m")) > work(config("", base="tiny-llava-s")) > 4e6
    assert weight_bytes("no/such-base") == 1


def test_the_expected_end_follows_what_is_measured(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("peftkit.studies.queue.time.time", lambda: now)
    queue = Queue([config("", seed=n) for n in range(7)], workers=2)
    assert queue.seconds_left() is None
    queue.take("v"), queue.take("w")
    now += 10
    queue.end("w", Outcome({}, "done", 1.0, 10.0))
    assert queue.seconds_left() == pytest.approx(25.0), "five that wait, one that should be over, two workers"
    queue.take("w")
    now += 4
    assert queue.seconds_left() == pytest.approx((6 + 40) / 2)


def makespan(queue):
    """Seconds until the last run ends, if a run takes its work, give or take a fifth, and loading takes 5."""
    ready, loaded, end = [(0.0, worker, None) for worker in range(queue.workers)], {}, 0.0
    while ready:
        now, worker, run = heapq.heappop(ready)
        if run:
            queue.end(worker, Outcome(run, "found"))
        if job := queue.take(worker):
            run = job[0]
            group = run["base"], run["task"]
            loading = LOADING * (loaded.get(worker) != group)
            loaded[worker] = group
            end = max(end, now + loading + run["options"]["seconds"])
            heapq.heappush(ready, (now + loading + run["options"]["seconds"], worker, run))
    return end


@pytest.mark.parametrize("workers", [2, 8])
@pytest.mark.parametrize("long", [0, 400])
@pytest.mark.parametrize("seed", range(3))
def test_no_worker_is_idle_for_long(workers, long, seed):
    draw = random.Random(seed)
    lengths = {(base, task, method): draw.randint(2, 9) for base in "AB" for task in "xyz" for method in "klm"}
    grid = [config("", task, n, base, method, epochs) for (base, task, method), epochs in lengths.items()
            for n in range(5)] + [config("", "z", 9, "B", "l", epochs=long)] * bool(long)
    for run in grid:
        run["options"]["seconds"] = work(run) * draw.uniform(0.8, 1.2)
    seconds = [run["options"]["seconds"] for run in grid]
    bound = max(max(seconds), (sum(seconds) + 6 * LOADING) / workers)
    assert makespan(Queue(grid, workers=workers)) <= bound * (1.03 if workers == 2 else 1.12)
