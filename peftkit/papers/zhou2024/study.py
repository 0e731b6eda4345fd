"""The main study (Table 1): four methods, connector frozen or tuned, eight tasks, several bases."""
from dataclasses import dataclass
from pathlib import Path

from ...errors import choose
from ...studies import RunStore, Study

UNSEEN = ("scienceqa", "vizwiz", "iconqa_txt", "iconqa_blank", "flickr30k")
SEEN = ("okvqa", "ocrvqa", "vqav2")
# Sizes keep the paper's ratio to the width of the language model (rank 128 and bottleneck 256 at width 4,096); the
# number of virtual tokens is the paper's own.
SIZES = {"lora": {"rank": 4}, "adapter": {"bottleneck": 8}, "ia3": {}, "prefix-peft": {"tokens": 20}}
# Peak learning rates: each method's best of four on validation splits (rates.csv, made by rates.py).
RATES = {"lora": {"learning_rate": 1e-2}, "adapter": {"learning_rate": 1e-2}, "ia3": {"learning_rate": 1e-1},
         "prefix-peft": {"learning_rate": 1e-1}, "language": {"learning_rate": 1e-3}}
FULL = {"language": {"connector": "tuned"}}  # full fine-tuning as in appendix A.2: all but the vision tower
CONNECTOR_RATE = 5e-4  # the same for every method, as in the paper


@dataclass(frozen=True)
class Tier:
    """How large the studies are run: seeds per base, tasks of the main study, examples and epochs; more_seeds are
    those that only studies of stability have; every_task is False where the other studies have one task each."""

    seeds: dict[str, tuple[int, ...]]
    tasks: tuple[str, ...]
    train_size: int
    test_size: int
    epochs: int
    more_seeds: tuple[int, ...] = ()
    every_task: bool = True


TIERS = {
    "smoke": Tier({"tiny-llava-s": (42,)}, ("iconqa_blank", "vqav2"), 32, 20, 1, every_task=False),
    "laptop": Tier(dict.fromkeys(("tiny-llava-s", "tiny-llava-m", "tiny-idefics2"), (42, 43, 44, 45, 46)),
                   UNSEEN + SEEN, 800, 400, 3, more_seeds=(47, 48)),
}


def main_study(tier: str, store: RunStore | str | Path) -> list[Study]:
    """One study a base (bases may have different seeds). Raises PeftkitError for an unknown tier."""
    size = TIERS[choose("tier", tier, TIERS)]
    store = store if isinstance(store, RunStore) else RunStore(store)
    settings = {"all": {"epochs": size.epochs, "connector_learning_rate": CONNECTOR_RATE}, **RATES}
    return [Study("zhou2024", bases=(base,), methods={"none": {}, **SIZES, **FULL}, tasks=size.tasks, seeds=seeds,
                  store=store, settings=settings, train_size=size.train_size, test_size=size.test_size)
            for base, seeds in size.seeds.items()]
