"""What becomes of a run, and how one is done: claimed, looked up, done, stored."""
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib import import_module

from .store import RunStore, canonical

SHOWN_FAILURES = 3


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    status: done, found (another process had done it), busy (it does it now), killed (its process ended) or error.
    """

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


def attempt(config: dict, wait: bool, store: RunStore) -> Generator[None, tuple, Outcome]:
    """A run seen from its store: claims it, pauses where it is to be done, stores what is sent in, returns its outcome.

    It does not pause for a run that is stored already, or that another process has and `wait` is False. What is thrown
    in becomes the error of the outcome. Closing it frees the run.
    """
    started = time.perf_counter()
    try:
        with store.claim(config, wait) as held:
            if not held:
                return Outcome(config, "busy")
            record, status = store.get(config), "found"
            if record is None:
                record, status = store.put(config, *(yield)), "done"
    except Exception:
        return Outcome(config, "error", seconds=time.perf_counter() - started, error=traceback.format_exc())
    return Outcome(config, status, record.content["metrics"]["score"], time.perf_counter() - started)


def begin(run: Generator[None, tuple, Outcome]) -> Outcome | None:
    """Start an attempt; returns its outcome, or None if the run is to be done."""
    try:
        return next(run)
    except StopIteration as end:
        return end.value


def finish(run: Generator[None, tuple, Outcome], result: Callable[[], tuple]) -> Outcome:
    """Give an attempt the parts and predictions that `result` returns, or the error that it raises."""
    try:
        try:
            given = result()
        except Exception as error:
            run.throw(error)
        else:
            run.send(given)
    except StopIteration as end:
        return end.value


def do(config: dict, wait: bool, store: RunStore, run_one: str) -> Outcome:
    """Do the run in this process and store its record, unless it is stored already or another process has it."""
    run = attempt(config, wait, store)
    return begin(run) or finish(run, lambda: resolve(run_one)(config, store.checkpoints(config)))


def resolve(path: str) -> Callable[[dict], tuple]:
    """The function that "module:function" names."""
    module, function = path.split(":")
    return getattr(import_module(module), function)
