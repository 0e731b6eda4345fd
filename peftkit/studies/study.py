"""A study: the grid of runs that a paper's table stands on, and the frame of records it becomes."""
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from pathlib import Path

import pandas as pd

from ..errors import PeftkitError, choose
from .execution import RUN_ONE, execute
from .store import RunStore, tabulate

CONNECTORS = ("frozen", "tuned")
SWITCHES = ("connector", "vision", "vocabulary")  # of `inject`, each with the values of CONNECTORS
ZERO_SHOT = "none"


@dataclass(frozen=True)
class Study:
    """A grid of runs: bases × tasks × methods × connectors × seeds.

    `methods` maps a name to its options, or to a list of options for several variants; `"none"` is the untrained base,
    one run a base and task. Options that name a connector replace the grid's connectors for that variant; they may
    name vision and vocabulary too (see `peftkit.inject`).
    `settings` maps `"all"`, a base, a method or `"base/method"` to `TrainConfig` fields; the later kind wins.
    Every method gets the same `seeds`, so that differences are paired. Names are checked when the study is made:
    `PeftkitError` names an unknown one and lists the accepted.
    """

    name: str
    _: KW_ONLY
    bases: Sequence[str]
    methods: Mapping[str, Mapping | Sequence[Mapping]]
    tasks: Sequence[str]
    seeds: Sequence[int]
    store: RunStore | str | Path
    connectors: Sequence[str] = CONNECTORS
    settings: Mapping[str, Mapping] = field(default_factory=dict)
    train_size: int = 1000
    test_size: int = 400
    run_one: str = RUN_ONE
    hashes: dict[str, str] = field(init=False, repr=False)  # of each base's weights

    def __post_init__(self):
        from ..models import load

        _check(self)
        object.__setattr__(self, "hashes", {base: load(base).hash for base in self.bases})
        if not isinstance(self.store, RunStore):
            object.__setattr__(self, "store", RunStore(self.store))

    def configs(self) -> list[dict]:
        """The configuration of every run of the grid, runs that share a base and a task side by side."""
        return [
            {
                "study": self.name,
                "base": base,
                "base_hash": self.hashes[base],
                "method": method,
                "options": options,
                "task": task,
                "train_size": self.train_size,
                "test_size": self.test_size,
                "seed": seed,
                "train": {} if method == ZERO_SHOT else self._training(base, method),
            }
            for base in self.bases
            for task in self.tasks
            for method, options, seed in self._arms()
        ]

    def missing(self) -> list[dict]:
        """The configurations that the store has no trustworthy record of."""
        return [config for config in self.configs() if self.store.get(config) is None]

    def run(self, workers: int | None = None, progress: bool = True, executor: str = "local",
            address: str | None = None) -> pd.DataFrame:
        """Do the missing runs and return the study's records, one tidy row a run (see `Record.row`).

        executor "local" does them on this machine in `workers` processes, by default one a core or one a GPU; 0, the
        default with one GPU, does them in this process. executor "ray" does them on the Ray cluster at `address`
        ("HOST:PORT"; by default RAY_ADDRESS, else a new one of this machine alone), at most `workers` at a time.
        Raises `RunsFailed` after the last run if any failed; finished runs are kept and never redone.
        Raises `PeftkitError` for another executor and, within 30 s, for an address that does not answer.
        """
        execute(self.missing(), self.store, workers=workers, progress=progress, executor=executor, address=address,
                run_one=self.run_one)
        return self.frame()

    def frame(self) -> pd.DataFrame:
        """The records of this study that the store has, one tidy row a run, in the order of the grid."""
        return tabulate(record for record in map(self.store.get, self.configs()) if record)

    def _arms(self) -> Iterator[tuple[str, dict, int | None]]:
        for method, variants in self.methods.items():
            if method == ZERO_SHOT:
                yield method, {}, None
                continue
            for options in _listed(variants):
                for connector in [options["connector"]] if "connector" in options else self.connectors:
                    for seed in self.seeds:
                        yield method, {**options, "connector": connector}, seed

    def _training(self, base: str, method: str) -> dict:
        from ..training import TrainConfig

        chosen = {}
        for key in ("all", base, method, f"{base}/{method}"):
            chosen |= self.settings.get(key, {})
        return {name: value for name, value in asdict(TrainConfig(**chosen)).items() if name in _training_fields()}


def _listed(variants: Mapping | Sequence[Mapping]) -> Sequence[Mapping]:
    return [variants] if isinstance(variants, Mapping) else variants


def _training_fields() -> list[str]:
    from ..training.config import EXECUTION, TrainConfig

    return [item.name for item in fields(TrainConfig) if item.name not in ("seed", *EXECUTION)]


def _check(study: Study) -> None:
    from ..data import SPECS
    from ..methods import METHODS, method_options

    for task in study.tasks:
        choose("task", task, SPECS)
    if study.methods.get(ZERO_SHOT):
        raise PeftkitError(f"method {ZERO_SHOT!r} is the untrained base and takes no options")
    for connector in study.connectors:
        choose("connector", connector, CONNECTORS)
    for method, variants in study.methods.items():
        choose("method", method, [ZERO_SHOT, *METHODS])
        for options in _listed(variants) if method != ZERO_SHOT else ():
            own = dict(options)
            for switch in SWITCHES:
                choose(switch, own.pop(switch, CONNECTORS[0]), CONNECTORS)
            method_options(method, own)
    pairs = [f"{base}/{method}" for base in study.bases for method in study.methods]
    for key, chosen in study.settings.items():
        choose("key of settings", key, ["all", *study.bases, *study.methods, *pairs])
        for name in chosen:
            choose("training setting", name, _training_fields())
