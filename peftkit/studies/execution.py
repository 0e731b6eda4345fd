"""Doing many runs: here or on a Ray cluster, with a live table, clean stops and a report of what failed."""
import os
from collections.abc import Iterator
from contextlib import closing

from ..errors import PeftkitError, choose, require_count
from .estimates import Estimates
from .outcome import Outcome, RunsFailed
from .progress import Table
from .queue import Queue
from .store import RunStore
from .workers import default_workers, in_workers, inline

RUN_ONE = "peftkit.studies.run:run_one"
EXECUTORS = ("local", "ray")


def execute(
    configs: list[dict],
    store: RunStore,
    *,
    workers: int | None = None,
    progress: bool = True,
    executor: str = "local",
    address: str | None = None,
    run_one: str = RUN_ONE,
) -> list[Outcome]:
    """Do the runs that `store` lacks and return every outcome, in the order in which the runs ended.

    `run_one` ("module:function") maps a configuration to the record's parts and its predictions.
    executor "local": `workers` processes, by default one a core or one a GPU; 0, the default with one GPU, does the
    runs in this process. executor "ray": at most `workers` runs at a time, by default as many as the cluster has GPUs,
    else cores; for `address` see `peftkit.studies.cluster`.
    A run whose process or machine dies is done again, at most twice.
    Raises `RunsFailed` after the last run if any failed. An interrupt stops the runs and keeps what is finished.
    Raises `PeftkitError` for another executor, and within 30 s for an address at which no Ray cluster answers.
    """
    choose("executor", executor, EXECUTORS)
    if address and executor == "local":
        raise PeftkitError(f"address is {address!r} with executor='local'; accepted: an address with executor='ray'")
    if workers is not None and (workers or executor == "ray"):
        require_count(workers=workers)
    if not configs:
        return []
    queue = Queue(configs, Estimates(store))
    if executor == "ray":
        from .cluster import on_cluster

        results = on_cluster(queue, store, run_one, address, workers)
    elif count := min(default_workers() if workers is None else workers, len(configs)):
        results = in_workers(queue, store, run_one, count)
    else:
        results = inline(queue, store, run_one)
    outcomes = _follow(queue, results, hidden=not progress or bool(os.environ.get("TQDM_DISABLE")))
    if any(outcome.status == "error" for outcome in outcomes):
        raise RunsFailed(outcomes)
    return outcomes


def _follow(queue: Queue, results: Iterator[Outcome | None], hidden: bool) -> list[Outcome]:
    outcomes = []
    with closing(results), Table(queue, hidden) as table:
        for outcome in results:
            table.show()
            if outcome:
                outcomes.append(outcome)
    return outcomes
