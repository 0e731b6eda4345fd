"""The main study (Table 1): four methods, connector frozen or tuned, eight tasks, several bases."""
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ...errors import PeftkitError, choose
from ...studies import Record, RunStore, Study, read_bundle

UNSEEN = ("scienceqa", "vizwiz", "iconqa_txt", "iconqa_blank", "flickr30k")
SEEN = ("okvqa", "ocrvqa", "vqav2")
# Sizes keep the paper's ratio to the width of the language model (rank 128 and bottleneck 256 at width 4,096); the
# number of virtual tokens is the paper's own.
SIZES = {"lora": {"rank": 4}, "adapter": {"bottleneck": 8}, "ia3": {}, "prefix-peft": {"tokens": 20}}
# Peak learning rates: each method's best of four on validation splits (rates.csv, made by rates.py).
RATES = {"lora": {"learning_rate": 1e-2}, "adapter": {"learning_rate": 1e-2}, "ia3": {"learning_rate": 1e-1},
         "prefix-peft": {"learning_rate": 1e-1}}
CONNECTOR_RATE = 5e-4  # the same for every method, as in the paper

_CHECKOUT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Tier:
    """How large the study is run: seeds per base, tasks, examples and epochs."""

    seeds: dict[str, tuple[int, ...]]
    tasks: tuple[str, ...]
    train_size: int
    test_size: int
    epochs: int


TIERS = {
    "smoke": Tier({"tiny-llava-s": (42,)}, ("iconqa_blank", "vqav2"), 32, 20, 1),
    "laptop": Tier({"tiny-llava-s": (42, 43, 44, 45, 46), "tiny-llava-m": (42, 43, 44), "tiny-idefics2": (42, 43, 44)},
                   UNSEEN + SEEN, 800, 400, 3),
}


def main_study(tier: str, store: RunStore | str | Path) -> list[Study]:
    """One study a base (bases may have different seeds). Raises PeftkitError for an unknown tier."""
    size = TIERS[choose("tier", tier, TIERS)]
    store = store if isinstance(store, RunStore) else RunStore(store)
    settings = {"all": {"epochs": size.epochs, "connector_learning_rate": CONNECTOR_RATE}, **RATES}
    return [Study("zhou2024", bases=(base,), methods={"none": {}, **SIZES}, tasks=size.tasks, seeds=seeds, store=store,
                  settings=settings, train_size=size.train_size, test_size=size.test_size)
            for base, seeds in size.seeds.items()]


def main_records(tier: str, runs: str = "committed") -> list[Record]:
    """The records of the main study.

    runs: "committed" reads those that the repository ships (figures/runs, made by `peftkit figures --accept`); "live"
    trains what the store lacks (the folder that PEFTKIT_STORE names, else `runs` in the checkout). The smoke tier is
    always live, in a store of its own unless PEFTKIT_STORE names one. Raises PeftkitError for unknown words and for
    records that are not there.
    """
    choose("tier", tier, TIERS)
    choose("value of runs", runs, ("committed", "live"))
    named = os.environ.get("PEFTKIT_STORE")
    if tier == "smoke":
        with tempfile.TemporaryDirectory() as folder:
            return _train(main_study(tier, named or folder))
    if runs == "live":
        return _train(main_study(tier, named or _CHECKOUT / "runs"))
    paths = [record_file(base) for base in TIERS[tier].seeds]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise PeftkitError(f"no committed records {', '.join(missing)}; `peftkit figures --accept` makes them")
    return [record for path in paths for record in read_bundle(path)]


def record_file(base: str) -> Path:
    """Where the repository keeps the committed records of the main study on `base`."""
    return _CHECKOUT / "figures" / "runs" / f"zhou2024-{base}.parquet"


def _train(studies: list[Study]) -> list[Record]:
    for study in studies:
        study.run()
    return [study.store.get(config) for study in studies for config in study.configs()]
