"""Runs on this machine: in processes of one thread each, one a core or one a GPU, or in this process.

One thread each, even where cores are left: sums over several threads add up in another order, and a record must not
depend on the number of workers.
"""
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, get_context
from threading import RLock

import joblib
from tqdm import tqdm

from .outcome import Outcome, do
from .queue import Queue
from .store import RunStore

QUIET = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}


def default_workers() -> int:
    """One a GPU where there are several, none (this process does the runs) for one GPU, else one a core.

    Cores are those that this process may use: its affinity and its container's quota count.
    """
    import torch

    gpus = torch.cuda.device_count()
    return (gpus if gpus > 1 else 0) if gpus else joblib.cpu_count()


def in_workers(queue: Queue, store: RunStore, run_one: str, count: int) -> Iterator[Outcome | None]:
    """Do the runs of `queue` in `count` processes; yields each outcome, and None when something else has moved.

    A worker that dies is replaced. Closing the iterator stops the workers, which frees the runs they had claimed.
    """
    queue.workers = count
    started = [_Worker(number, store, run_one) for number in range(count)]
    working = list(started)
    try:
        while not queue.finished:
            for worker in connection.wait(working):
                working.remove(worker)
                outcome = worker.hear()
                outcome = queue.end(worker.number, outcome) if outcome else None
                if worker.ended and queue.left:
                    started.append(_Worker(worker.number, store, run_one))
                    working.append(started[-1])
                elif not worker.ended and (job := queue.take(worker.number)):
                    worker.give(job)
                    working.append(worker)
                yield outcome
    finally:
        for worker in started:
            worker.stop()


def inline(queue: Queue, store: RunStore, run_one: str) -> Iterator[Outcome | None]:
    """Do the runs of `queue` in this process; yields each outcome, and None when something else has moved."""
    while job := queue.take("this process"):
        yield None
        yield queue.end("this process", do(*job, store, run_one))


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


def one_thread() -> None:
    """Keep torch in this process to one thread."""
    import torch

    torch.set_num_threads(1)


class _Worker:
    """A process that does one run after another; its `fileno` lets `connection.wait` wait for it."""

    def __init__(self, number: int, store: RunStore, run_one: str):
        context = get_context("spawn")
        self.number, self.config, self.ended = number, None, False
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, store, run_one), daemon=True)
        with environment(QUIET | _device(number)):
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
        return Outcome(self.config, "killed", error=f"the worker process ended during this run: {cause}")

    def give(self, job: tuple[dict, bool]) -> None:
        self.config = job[0]
        try:
            self.pipe.send(job)
        except OSError:  # it is dead, and `hear` will say so
            pass

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()


def _device(number: int) -> dict[str, str]:
    """The variable that shows worker `number` one GPU alone; nothing on a machine without."""
    import torch

    count = torch.cuda.device_count()
    if not count:
        return {}
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = shown.split(",") if shown else [str(index) for index in range(count)]
    return {"CUDA_VISIBLE_DEVICES": names[number % count]}


def _serve(pipe: connection.Connection, store: RunStore, run_one: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(RLock())  # its own lock for processes would outlive a process that is stopped
    one_thread()
    pipe.send(None)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(do(*job, store, run_one))
