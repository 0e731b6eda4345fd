"""Runs on a Ray cluster of two nodes on this machine: each done once, those of a node that dies on the other."""
import os
import signal
import socket
import sys
import time
from collections import Counter
from threading import Event, Thread
from types import SimpleNamespace

import pytest

from peftkit.errors import PeftkitError
from peftkit.studies import cluster
from peftkit.studies.estimates import weight_bytes
from peftkit.studies.execution import execute
from peftkit.studies.outcome import RunsFailed
from peftkit.studies.queue import RETRIES, Queue
from peftkit.studies.store import RunStore

from .runs import FAKE_RUN, config, fake_run, log_of

ray = pytest.importorskip("ray", reason="needs ray: pip install 'peftkit[ray]'")


@pytest.fixture(scope="module")
def nodes():
    """A cluster of two nodes with a core each; at the end no process of it is left."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        made.add_node(num_cpus=1)
        yield made
        ray.shutdown()
        made.shutdown()


class CountingStore(RunStore):
    """A store that counts how often each run is written, and calls `midway` at the sixth record."""

    def __init__(self, folder, midway=lambda: None):
        super().__init__(folder)
        self.puts, self.midway = Counter(), midway

    def put(self, config, *record):
        self.puts[config["seed"]] += 1
        if self.puts.total() == 6:
            Thread(target=self.midway).start()
        return super().put(config, *record)


def on_ray(configs, store, address):
    return execute(configs, store, progress=False, executor="ray", address=address, run_one=FAKE_RUN)


def kill_when_busy(nodes, node, folder):
    """Kill a node and its worker process as soon as it has begun another run."""
    def begun():
        return [line for line in log_of(folder) if int(line[5]) == node.all_processes["raylet"][0].process.pid]

    before = begun()
    while len(begun()) == len(before):
        time.sleep(0.01)
    os.kill(int(begun()[-1][2]), signal.SIGKILL)
    nodes.remove_node(node, allow_graceful=False)


@pytest.mark.slow
def test_failures_are_told_and_what_another_process_has_is_left_to_it(nodes, tmp_path):
    bad = [config(tmp_path, fail=True), config(tmp_path, seed=1, die=9)]
    grid = [*bad, *(config(tmp_path, seed=seed, base=str(tmp_path)) for seed in (2, 3, 4))]
    store = RunStore(tmp_path / "store")

    def do_one_when_others_are_done():
        with store.claim(grid[2]):
            claimed.set()
            while not (store.get(grid[3]) and store.get(grid[4])):
                time.sleep(0.1)
            store.put(grid[2], *fake_run(grid[2]))

    claimed, other = Event(), Thread(target=do_one_when_others_are_done)
    other.start()
    claimed.wait()
    with pytest.raises(RunsFailed, match="2 of 5 runs failed") as caught:
        on_ray(grid, store, nodes.address)
    other.join()
    assert Counter(outcome.status for outcome in caught.value.outcomes) == {"error": 2, "done": 2, "found": 1}
    assert "FloatingPointError: loss is nan at step 3" in str(caught.value)
    assert "The worker died unexpectedly" in str(caught.value)
    assert Counter(line[1] for line in log_of(tmp_path)) == {"0": 1, "1": RETRIES + 1, "2": 1, "3": 1, "4": 1}


@pytest.mark.slow
def test_a_grid_survives_the_death_of_a_node_and_every_record_is_written_once(nodes, tmp_path):
    grid = [config(tmp_path, task, 4 * n + seed, sleep=0.4) for n, task in enumerate("vwxyz") for seed in range(4)]
    node = next(iter(nodes.worker_nodes))
    store = CountingStore(tmp_path / "store", lambda: kill_when_busy(nodes, node, tmp_path))
    outcomes = on_ray(grid, store, nodes.address)
    assert Counter(outcome.status for outcome in outcomes) == {"done": 20} and store.puts == Counter(range(20))
    assert [store.get(run).content["metrics"]["score"] for run in grid] == [n / 100 for n in range(20)]
    lines = log_of(tmp_path)
    assert not nodes.worker_nodes and len(lines) == 21, "one run was begun twice"
    assert {line[3] for line in lines} == {"1"} and not ray.is_initialized()


def test_a_run_asks_for_a_core_a_gpu_where_there_are_any_and_memory_for_its_base():
    asked = cluster.needs(config("", base="tiny-llava-s"), gpu=True)
    assert asked == {"num_cpus": 1, "num_gpus": 1, "memory": 3 * weight_bytes("tiny-llava-s")}
    assert cluster.needs(config(""), gpu=False)["num_gpus"] == 0


def test_a_run_that_no_node_has_room_for_is_refused(tmp_path):
    resources = {"CPU": 4.0, "memory": 1e6}
    ray = SimpleNamespace(remote=lambda task: task, cluster_resources=lambda: resources,
                          nodes=lambda: [{"Alive": True, "Resources": resources}])
    with pytest.raises(PeftkitError, match="tiny-llava-s needs .* the nodes have .*1000000.0"):
        cluster._Sent(ray, Queue([config("", base="tiny-llava-s")]), RunStore(tmp_path), FAKE_RUN)


@pytest.fixture
def silent_port():
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_an_address_that_does_not_answer_is_an_error_within_30_seconds(silent_port, tmp_path, monkeypatch):
    assert cluster.CONNECT_SECONDS + cluster.ANSWER_SECONDS < 30
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 3)
    started = time.monotonic()
    with pytest.raises(PeftkitError, match=f"127.0.0.1:{silent_port}': Ray did not answer within 3 s"):
        on_ray([config(tmp_path)], RunStore(tmp_path), f"127.0.0.1:{silent_port}")
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("address", ["127.0.0.1:9", "head", "127.0.0.1:port", "no.such.host:9"])
def test_an_address_that_refuses_or_is_none_is_an_error_at_once(tmp_path, address):
    with pytest.raises(PeftkitError, match=f"no Ray cluster at '{address}'.*accepted: the HOST:PORT"):
        on_ray([config(tmp_path)], RunStore(tmp_path), address)


def test_a_node_without_the_folder_of_the_base_says_so(tmp_path):
    with pytest.raises(PeftkitError, match=f"{socket.gethostname()} has no folder '{tmp_path}/base'"):
        cluster._run(FAKE_RUN, config(tmp_path, base=f"{tmp_path}/base"), folder=True)


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PeftkitError, match=r"pip install 'peftkit\[ray\]'"):
        on_ray([config(tmp_path)], RunStore(tmp_path), None)
