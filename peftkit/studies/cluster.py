"""Runs on a Ray cluster: each a task that asks for what it needs; the records come back to one store.

The driver, this process, claims a run in its store, sends it out, and stores what comes back: the nodes need peftkit
and ray but no common folder. Bundled bases come with the package; a base that is a folder must be there on each node.
A run whose worker or node dies is done again elsewhere. A run follows the one whose slot it takes in base and task
where it can: Ray gives it the worker process that has become free, which has them loaded. (Not on GPUs: there Ray
ends a process after each task, so that the next one can get another GPU.)
"""
import os
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import PeftkitError
from .estimates import BUNDLED, weight_bytes
from .outcome import Outcome, attempt, begin, finish, resolve
from .queue import RETRIES, Queue
from .store import RunStore
from .workers import QUIET, environment, one_thread

CONNECT_SECONDS = 5  # until a machine must accept a connection,
ANSWER_SECONDS = 22  # and until Ray must answer there; together below 30
LOOK_SECONDS = 10  # between two looks at the size of the cluster
COPIES = 3  # of a base's weights that a run holds: kept for the next run, in use, and room for the rest


def on_cluster(
    queue: Queue, store: RunStore, run_one: str, address: str | None = None, limit: int | None = None
) -> Iterator[Outcome | None]:
    """Do the runs of `queue` on Ray; yields each outcome, and None when something else has moved.

    address: "HOST:PORT" of a cluster that this machine is a node of, "auto" (Ray finds it) or "local" (a new one, this
    machine alone); by default the variable RAY_ADDRESS, else "local". A connection that is there already is used.
    limit: runs at a time, by default one a GPU of the cluster or, without GPUs, one a core.
    Raises PeftkitError without ray, for an address that does not answer (within 30 s), and for runs that no node has
    room for. Closing the iterator cancels what runs and frees it.
    """
    with _connected(address) as ray:
        sent = _Sent(ray, queue, store, run_one)
        try:
            while not queue.finished:
                queue.workers = limit or _slots(ray.cluster_resources())
                for slot in range(queue.workers):
                    yield from sent.send(slot)
                yield from sent.receive()
        finally:
            sent.cancel()


def needs(config: dict, gpu: bool) -> dict[str, int]:
    """What Ray sets aside for a run: one core, one GPU where there are any, and bytes of memory for the base."""
    return {"num_cpus": 1, "num_gpus": int(gpu), "memory": COPIES * weight_bytes(config["base"])}


class _Sent:
    """The runs that are out: Ray's reference to what each gives, its slot and its attempt, which holds the claim."""

    def __init__(self, ray, queue: Queue, store: RunStore, run_one: str):
        self.ray, self.queue, self.store, self.run_one = ray, queue, store, run_one
        self.task = ray.remote(_run)
        self.gpu = "GPU" in ray.cluster_resources()
        self.runs: dict[object, tuple[int, Generator]] = {}
        for configs in queue.waiting.values():
            self._require_room(configs[0])

    def send(self, slot: int) -> Iterator[Outcome | None]:
        """Send the next run into a free slot; yields the outcomes of those that prove to be done already."""
        while slot not in self.queue.running and (job := self.queue.take(slot, patient=not self.runs)):
            config, run = job[0], attempt(*job, self.store)
            outcome = begin(run)
            if outcome:
                yield self.queue.end(slot, outcome)
                continue
            options = needs(config, self.gpu)
            here = Path(config["base"]).is_dir() and not (BUNDLED / config["base"]).is_dir()
            reference = self.task.options(max_retries=RETRIES, **options).remote(self.run_one, config, here)
            self.runs[reference] = slot, run
            yield None

    def receive(self) -> Iterator[Outcome | None]:
        """Wait for a run, store its record and yield its outcome."""
        for reference in self.ray.wait(list(self.runs), timeout=LOOK_SECONDS)[0] if self.runs else ():
            slot, run = self.runs.pop(reference)
            yield self.queue.end(slot, finish(run, lambda: self.ray.get(reference)))

    def cancel(self) -> None:
        for reference, (_, run) in self.runs.items():
            self.ray.cancel(reference, force=True)
            run.close()

    def _require_room(self, config: dict) -> None:
        wanted = dict(zip(("CPU", "GPU", "memory"), needs(config, self.gpu).values()))
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
            have = [{name: node.get(name, 0) for name in wanted} for node in nodes]
            raise PeftkitError(f"a run on {config['base']} needs {wanted} (memory in bytes) on one node of the Ray "
                               f"cluster; the nodes have {have}")


@contextmanager
def _connected(address: str | None) -> Iterator:
    """The ray package, connected; a connection that was made here is closed at the end."""
    try:
        import ray
    except ImportError:
        raise PeftkitError("executor='ray' needs ray: pip install 'peftkit[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS", "local")
    if address != "local":
        _require_answer(address)
    with environment({"RAY_USAGE_STATS_ENABLED": "0"}):
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Raise PeftkitError unless a Ray cluster answers there.

    A process of its own tries, since ray.init goes on trying for minutes and cannot be stopped.
    """
    try:
        if address != "auto":
            host, port = address.rsplit(":", 1)
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        trial = f"import ray; ray.init({address!r}, log_to_driver=False, logging_level='ERROR')"
        subprocess.run([sys.executable, "-c", trial], check=True, capture_output=True, text=True,
                       timeout=ANSWER_SECONDS)
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[-1]
    except subprocess.TimeoutExpired:
        reason = f"Ray did not answer within {ANSWER_SECONDS} s"
    except (OSError, ValueError) as error:
        reason = str(error)
    else:
        return
    raise PeftkitError(f"no Ray cluster at {address!r}: {reason}; accepted: the HOST:PORT that `ray start --head` "
                       "printed, on a machine that has joined that cluster")


def _slots(resources: dict[str, float]) -> int:
    return max(1, int(resources.get("GPU") or resources.get("CPU", 0)))


def _run(run_one: str, config: dict, folder: bool) -> tuple:
    """The run, on a node. folder: whether the base is a folder on the driver's machine."""
    os.environ.update(QUIET)
    one_thread()
    if folder and not Path(config["base"]).is_dir():
        raise PeftkitError(f"{socket.gethostname()} has no folder {config['base']!r}: put the base there on each node")
    return resolve(run_one)(config)
