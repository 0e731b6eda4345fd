"""How the learning rates of the main study were chosen: four rates a method, validation splits, one base.

Every method gets the same budget and the test splits are not touched. `python -m peftkit.papers.zhou2024.rates` writes
rates.csv (validation scores on tiny-llava-s, connector tuned, one seed; about five minutes on one core).
"""
import copy
from pathlib import Path

import pandas as pd

from ...data import encode, task
from ...evaluation import evaluate
from ...methods import inject
from ...models import load
from ...training import TrainConfig, train
from ...training.features import cache_features
from .study import CONNECTOR_RATE, SIZES

GRID = {"lora": (2e-3, 5e-3, 1e-2, 2e-2), "adapter": (2e-3, 5e-3, 1e-2, 2e-2), "ia3": (1e-2, 2e-2, 5e-2, 1e-1),
        "prefix-peft": (1e-2, 2e-2, 5e-2, 1e-1), "language": (2e-4, 5e-4, 1e-3, 2e-3)}
TASKS = ("scienceqa", "iconqa_blank")
SEED = 7  # not among the study's seeds
FOUND = Path(__file__).with_suffix(".csv")


def search(base_name: str = "tiny-llava-s") -> pd.DataFrame:
    """Validation score of every method, rate and task, connector tuned; one row each."""
    base, rows = load(base_name), []
    for name in TASKS:
        drawn = task(name, train_size=800, validation_size=400)
        training = cache_features(base.model, encode(base.processor, drawn.train, drawn.prompt))
        validation = encode(base.processor, drawn.validation, drawn.prompt, split="validation")
        for method, rates in GRID.items():
            for rate in rates:
                model = inject(copy.deepcopy(base.model), method, connector="tuned", seed=SEED,
                               **SIZES.get(method, {}))
                train(model, base.processor, training, TrainConfig(
                    learning_rate=rate, connector_learning_rate=CONNECTOR_RATE, seed=SEED, progress=False))
                result = evaluate(model, base.processor, validation, metric=drawn.metric,
                                  max_new_tokens=drawn.max_new_tokens, progress=False)
                rows.append({"task": name, "method": method, "learning_rate": rate, "score": result.score})
                print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def tried() -> pd.DataFrame:
    """The last search: mean validation score over its tasks; a row a method, a column a rate, empty if not tried."""
    return pd.read_csv(FOUND).pivot_table(index="method", columns="learning_rate", values="score")


if __name__ == "__main__":
    found = search()
    found.to_csv(FOUND, index=False)
    print(found.groupby(["method", "learning_rate"], as_index=False)["score"].mean().to_string(index=False))
