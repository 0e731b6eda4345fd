"""How long a run will take: its work, times the seconds that a unit of work took in the runs most like it."""
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from .store import DAMAGE, RECORD, RunStore

LIKENESS = (("base", "method", "task"), ("base", "task"), ("base",), ())  # the most alike first
BACKWARD = 3  # a training step computes about three times what a forward pass does
NEWEST = 0.2  # weight of the newest measurement in a running mean
BUNDLED = Path(__file__).parents[1] / "models" / "bundled"  # peftkit.models says so too, but needs seconds to import


class Estimates:
    """Expected seconds of runs, from the records in a store and from what is measured while a grid runs.

    Before the first measurement the work stands for the seconds: it ranks runs, and is no time.
    """

    def __init__(self, store: RunStore | None = None):
        self.rates: dict[tuple, float] = {}  # seconds a unit of work
        for config, seconds in _finished(store) if store else ():
            self.learn(config, seconds)

    def learn(self, config: dict, seconds: float) -> None:
        """Note that a run took so many seconds."""
        rate = seconds / work(config)
        for like in _likeness(config):
            self.rates[like] = NEWEST * rate + (1 - NEWEST) * self.rates.get(like, rate)

    def seconds(self, config: dict) -> float:
        """Expected seconds of a run."""
        return work(config) * next((self.rates[like] for like in _likeness(config) if like in self.rates), 1.0)


def kind(config: dict) -> tuple:
    """What the expected seconds of a run depend on: runs that differ in seed or options alone are of one kind."""
    return (*(config[name] for name in ("base", "task", "method", "train_size", "test_size")), _epochs(config))


def work(config: dict) -> float:
    """Examples that a run trains on and tests, times the size of its base."""
    return (BACKWARD * config["train_size"] * _epochs(config) + config["test_size"]) * weight_bytes(config["base"])


@lru_cache
def weight_bytes(base: str) -> int:
    """Bytes of the weight files of a bundled base, a folder or a hub name in the local cache; 1 if it is none."""
    folder = next((folder for folder in (BUNDLED / base, Path(base)) if folder.is_dir()), None) or _cached(base)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) or 1


def _epochs(config: dict) -> float:
    return config["train"].get("epochs", 0)


def _cached(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return Path(name)


def _likeness(config: dict) -> list[tuple]:
    return [(names, *(config[name] for name in names)) for names in LIKENESS]


def _finished(store: RunStore) -> Iterator[tuple[dict, float]]:
    """Every finished run with its seconds; quick, since nothing is verified: a guess needs no checksum."""
    for path in store.folder.glob(f"[!.]*/{RECORD}"):
        with suppress(*DAMAGE):
            content = json.loads(path.read_text("utf-8"))
            seconds = content["train_info"]["train_time"] + content["metrics"]["eval_time"]
            yield content["run_info"]["config"], seconds
