"""Doing many runs: worker processes of one thread each, a progress bar, clean stops and a report of what failed."""
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import connection, get_context

from tqdm import tqdm

from .store import RunStore, canonical

RUN_ONE = "peftkit.studies.run:run_one"
QUIET = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
SHOWN_FAILURES = 3


@dataclass(frozen=True)
class Outcome:
    """What became of one run. `status` is done, found (another process had done it), busy (it does it now) or error."""

    config: dict
    status: str
    score: float | None = None
    seconds: float = 0.0
    error: str = ""


class RunsFailed(RuntimeError):
    """Some runs failed. `outcomes` holds every run's outcome; the records of the finished ones are in the store."""

    def __init__(self, outcomes: list[Outcome]):
        self.outcomes = outcomes
        failed = [outcome for outcome in outcomes if outcome.status == "error"]
        lines = [f"{len(failed)} of {len(outcomes)} runs failed; the others are in the store"]
        lines += [f"{canonical(outcome.config)}\n{outcome.error.strip()}" for outcome in failed[:SHOWN_FAILURES]]
        if len(failed) > SHOWN_FAILURES:
            lines.append(f"and {len(failed) - SHOWN_FAILURES} more, see .outcomes")
        super().__init__("\n\n".join(lines))


def execute(
    configs: list[dict],
    store: RunStore,
    *,
    workers: int | None = None,
    progress: bool = True,
    run_one: str = RUN_ONE,
) -> list[Outcome]:
    """Do the runs that `store` lacks and return every outcome, in the order in which the runs ended.

    `run_one` ("module:function") maps a configuration to the record's parts and its predictions.
    `workers` is the number of processes, by default one a core; 0, the default with a GPU, does the runs in this one.
    Raises `RunsFailed` after the last run if any failed. An interrupt stops the workers and keeps what is finished.
    """
    if not configs:
        return []
    count = min(_default_workers() if workers is None else workers, len(configs))
    results = _in_workers(configs, store, run_one, count) if count else _inline(configs, store, run_one)
    hidden = not progress or bool(os.environ.get("TQDM_DISABLE"))
    outcomes = []
    with closing(results), tqdm(total=len(configs), unit="run", disable=hidden) as bar:
        for outcome in results:
            outcomes.append(outcome)
            bar.set_postfix_str(_describe(outcome), refresh=False)
            bar.update()
    if any(outcome.status == "error" for outcome in outcomes):
        raise RunsFailed(outcomes)
    return outcomes


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started inside the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Queue:
    """The runs to do, grouped by base and task, so that a worker goes on with what it has loaded."""

    def __init__(self, configs: list[dict]):
        self.groups: dict[tuple, deque] = {}
        self.postponed: deque = deque()
        for config in configs:
            self.groups.setdefault(_group(config), deque()).append(config)

    def take(self, last: dict | None, elsewhere: list[dict]) -> tuple[dict, bool] | None:
        """The next run after `last`, and whether to wait for it if another process has it; None if none is left."""
        if not self.groups:
            return (self.postponed.popleft(), True) if self.postponed else None
        taken = {_group(config) for config in elsewhere}
        mine = _group(last) if last else (None, None)

        def fit(group: tuple) -> tuple:
            return group == mine, group not in taken, group[0] == mine[0], len(self.groups[group])

        group = max(self.groups, key=fit)
        config = self.groups[group].popleft()
        if not self.groups[group]:
            del self.groups[group]
        return config, False


class _Worker:
    """A process that does one run after another; its `fileno` lets `connection.wait` wait for it."""

    def __init__(self, store: RunStore, run_one: str):
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.config, self.ended = None, False
        self.process = context.Process(target=_serve, args=(theirs, store, run_one), daemon=True)
        with environment(QUIET):
            self.process.start()
        theirs.close()

    def fileno(self) -> int:
        return self.pipe.fileno()

    def hear(self) -> Outcome | None:
        """The outcome of the run it was given, or None if it has just become ready for the first."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            self.ended = True
        code = self.process.exitcode
        if self.config is None:
            advice = "a script must call Study.run below `if __name__ == '__main__':`, or with workers=0"
            raise RuntimeError(f"a worker process ended with exit code {code} before its first run; {advice}")
        cause = f"killed by {signal.Signals(-code).name}, perhaps out of memory" if code < 0 else f"exit code {code}"
        return Outcome(self.config, "error", error=f"the worker process ended during this run: {cause}")

    def give(self, job: tuple[dict, bool]) -> None:
        self.config = job[0]
        try:
            self.pipe.send(job)
        except OSError:  # it is dead, and `hear` will say so
            pass

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()


def _in_workers(configs: list[dict], store: RunStore, run_one: str, count: int) -> Iterator[Outcome]:
    queue, left = _Queue(configs), len(configs)
    started = [_Worker(store, run_one) for _ in range(count)]
    working = list(started)
    try:
        while left:
            for worker in connection.wait(working):
                working.remove(worker)
                outcome = worker.hear()
                if worker.ended:
                    started.append(_Worker(store, run_one))
                    working.append(started[-1])
                elif job := _next(queue, worker, outcome, working):
                    worker.give(job)
                    working.append(worker)
                if outcome and outcome.status != "busy":
                    left -= 1
                    yield outcome
    finally:
        for worker in started:
            worker.stop()


def _next(queue: _Queue, worker: _Worker, outcome: Outcome | None, others: list[_Worker]) -> tuple[dict, bool] | None:
    if outcome and outcome.status == "busy":
        queue.postponed.append(outcome.config)
    return queue.take(worker.config, [other.config for other in others if other.config])


def _inline(configs: list[dict], store: RunStore, run_one: str) -> Iterator[Outcome]:
    queue, last = _Queue(configs), None
    while job := queue.take(last, []):
        outcome, last = _do(*job, store, run_one), job[0]
        if outcome.status == "busy":
            queue.postponed.append(last)
        else:
            yield outcome


def _serve(pipe: connection.Connection, store: RunStore, run_one: str) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    pipe.send(None)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(_do(*job, store, run_one))


def _do(config: dict, wait: bool, store: RunStore, run_one: str) -> Outcome:
    started = time.perf_counter()
    try:
        with store.claim(config, wait) as held:
            if not held:
                return Outcome(config, "busy")
            record = store.get(config)
            status = "found" if record else "done"
            if record is None:
                record = store.put(config, *_resolve(run_one)(config))
    except Exception:
        return Outcome(config, "error", seconds=time.perf_counter() - started, error=traceback.format_exc())
    return Outcome(config, status, record.content["metrics"]["score"], time.perf_counter() - started)


def _resolve(path: str) -> Callable[[dict], tuple]:
    module, function = path.split(":")
    return getattr(import_module(module), function)


def _group(config: dict) -> tuple[str, str]:
    return config["base"], config["task"]


def _default_workers() -> int:
    import torch

    if torch.cuda.is_available():
        return 0
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # macOS lacks the first


def _describe(outcome: Outcome) -> str:
    config = outcome.config
    names = [config["base"], config["method"], config["options"].get("connector"), config["task"], config["seed"]]
    result = outcome.status if outcome.score is None else f"{outcome.score:.3f}"
    return f"{' '.join(str(name) for name in names if name is not None)}: {result}"
