"""The order of the runs of a grid: longest first, where a worker goes on with the base and task it has loaded."""
import time
from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass, replace

from .estimates import Estimates, kind
from .outcome import Outcome
from .store import hash_config

RETRIES = 2  # times that a run is done again after its process was killed


@dataclass(frozen=True)
class Running:
    """A run that a worker is at. since: seconds since the epoch."""

    config: dict
    since: float


class Queue:
    """The runs that wait, the runs that are done now and what became of the others.

    `workers` is how many runs there can be at a time; a worker is known by any hashable name.
    """

    def __init__(self, configs: list[dict], estimates: Estimates | None = None, workers: int = 1):
        self.waiting: dict[tuple, deque[dict]] = {}  # by what their seconds depend on
        self.postponed: deque[dict] = deque()  # another process does them
        self.running: dict[Hashable, Running] = {}
        self.statuses: Counter[str] = Counter()
        self.estimates = estimates or Estimates()
        self.workers = workers
        self._last: dict[Hashable, dict] = {}
        self._kills: Counter[str] = Counter()
        for config in configs:
            self._add(config)

    @property
    def left(self) -> int:
        """Number of runs that no worker here is at."""
        return sum(map(len, self.waiting.values())) + len(self.postponed)

    @property
    def finished(self) -> bool:
        """Whether every run has come to its end."""
        return not (self.left or self.running)

    def take(self, worker: Hashable, patient: bool = True) -> tuple[dict, bool] | None:
        """The next run of `worker`, and whether to wait for it if another process has it; None if there is none.

        A worker that is not `patient` gets no run to wait for.
        """
        if self.waiting:
            config, wait = self._pop(self._best(worker)), False
        elif self.postponed and patient:
            config, wait = self.postponed.popleft(), True
        else:
            return None
        self.running[worker], self._last[worker] = Running(config, time.time()), config
        return config, wait

    def end(self, worker: Hashable, outcome: Outcome) -> Outcome | None:
        """Note what became of the run of `worker`; returns the run's last outcome, None if it is to be done again."""
        config = self.running.pop(worker).config
        if outcome.status == "busy":
            self.postponed.append(config)
            return None
        if outcome.status == "killed":
            self._kills[hash_config(config)] += 1
            if self._kills[hash_config(config)] <= RETRIES:
                self._add(config)
                return None
            outcome = replace(outcome, status="error")
        if outcome.status == "done":
            self.estimates.learn(config, outcome.seconds)
        self.statuses[outcome.status] += 1
        return outcome

    def seconds_left(self) -> float | None:
        """Expected seconds until the last run ends; None before any run has been measured."""
        if not self.estimates.rates:
            return None
        now = time.time()
        running = [max(0.0, run.since + self.estimates.seconds(run.config) - now) for run in self.running.values()]
        costs = self._costs()
        total = sum(running) + sum(cost * len(self.waiting[alike]) for alike, cost in costs.items())
        return max(total / self.workers, *running, *costs.values(), 0.0)

    def _best(self, worker: Hashable) -> tuple:
        """Which kind of run to do: an urgent one, else one for which the least is to be loaded, else the longest."""
        mine = _group(self._last.get(worker))
        taken = {_group(run.config) for run in self.running.values()}
        costs = self._costs()
        # A run that takes longer than what each worker has left would outlast all others: it cannot wait.
        urgent = sum(cost * len(self.waiting[alike]) for alike, cost in costs.items()) / self.workers

        def fit(alike: tuple) -> tuple:
            group, cost = _group(self.waiting[alike][0]), costs[alike]
            return cost if cost >= urgent else 0.0, group == mine, group not in taken, group[0] == mine[0], cost

        return max(costs, key=fit)

    def _costs(self) -> dict[tuple, float]:
        return {alike: self.estimates.seconds(configs[0]) for alike, configs in self.waiting.items()}

    def _add(self, config: dict) -> None:
        self.waiting.setdefault(kind(config), deque()).append(config)

    def _pop(self, alike: tuple) -> dict:
        config = self.waiting[alike].popleft()
        if not self.waiting[alike]:
            del self.waiting[alike]
        return config


def _group(config: dict | None) -> tuple[str, str] | tuple[None, None]:
    """What a worker loads for a run."""
    return (config["base"], config["task"]) if config else (None, None)
