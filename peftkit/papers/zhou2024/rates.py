"""How the learning rates of the main study were chosen: four rates a method, validation splits, one base.
And what that choice decides (`choices`, `order_changes`).

Every method gets the same budget and the test splits are not touched. `python -m peftkit.papers.zhou2024.rates` writes
rates.csv (validation scores on tiny-llava-s, connector tuned, one seed; about five minutes on one core).
"""
import copy
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from ...data import encode, task
from ...evaluation import evaluate
from ...methods import inject
from ...models import load
from ...stats import compare
from ...training import TrainConfig, train
from ...training.features import cache_features
from .study import CONNECTOR_RATE, RATES, SIZES
from .varied import PAPER_RATES

GRID = {"lora": (2e-3, 5e-3, 1e-2, 2e-2), "adapter": (2e-3, 5e-3, 1e-2, 2e-2), "ia3": (1e-2, 2e-2, 5e-2, 1e-1),
        "prefix-peft": (1e-2, 2e-2, 5e-2, 1e-1), "language": (2e-4, 5e-4, 1e-3, 2e-3)}
TASKS = ("scienceqa", "iconqa_blank")
SEED = 7  # not among the study's seeds
ANCHOR = 50  # PAPER_RATES are the paper's times this, which gives LoRA its own best rate here
WORDS = ("paper's", "own best")
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


def choices(seeds: pd.DataFrame) -> pd.DataFrame:
    """The runs at the rates that matter: the paper's (ours: PAPER_RATES), and each method's own best.

    seeds: `both_sides.seed_scores` of the study of rates. Adds `rates`, "paper's" or "own best". Our own best rates
    were chosen on validation (RATES); the paper's are the best of Table 14, chosen on the very scores shown here.
    """
    parts = []
    for (side, method), part in seeds.groupby(["side", "method"], sort=False):
        if side == "ours":
            fixed, best = PAPER_RATES[method], RATES[method]["learning_rate"]
        else:
            fixed, best = PAPER_RATES[method] / ANCHOR, part.groupby("level")["score"].mean().idxmax()
        parts += [part[np.isclose(part["level"], rate, rtol=1e-6)].assign(rates=word)
                  for word, rate in ((WORDS[0], fixed), (WORDS[1], best))]
    return pd.concat(parts, ignore_index=True)


def order_changes(chosen: pd.DataFrame) -> pd.DataFrame:
    """Every pair of methods in every group on our side: how far a is ahead of b at the paper's rates, and at the own.

    chosen: of `choices`. Columns group, a, b, then for either choice difference, low, high (95 % t interval paired by
    seed) and p_holm (of the six pairs), and `order`: "kept", "changed", or "changed, resolved" where both intervals
    leave out zero. Empty with one seed.
    """
    ours = chosen[chosen["side"] == "ours"]
    pairs, rows = list(combinations(SIZES, 2)), []
    if ours["seed"].nunique() < 2:
        return pd.DataFrame(rows, columns=["group", "a", "b", "order"])
    for group, part in ours.groupby("group", sort=False):
        wide = part.pivot(index="seed", columns=["rates", "method"], values="score")
        found = [compare({method: wide[word][method] for method in SIZES}, pairs) for word in WORDS]
        for pair, *both in zip(pairs, *found):
            row = dict(zip("ab", pair), group=group)
            for word, one in zip(WORDS, both):
                gap = one.difference
                row |= {word: gap.mean, f"{word} low": gap.low, f"{word} high": gap.high, f"{word} p_holm": one.p_holm}
            flipped = row[WORDS[0]] * row[WORDS[1]] < 0
            clear = all(one.difference.low * one.difference.high > 0 for one in both)
            rows.append(row | {"order": "kept" if not flipped else "changed, resolved" if clear else "changed"})
    return pd.DataFrame(rows).set_index(["group", "a", "b"]).reset_index()


if __name__ == "__main__":
    found = search()
    found.to_csv(FOUND, index=False)
    print(found.groupby(["method", "learning_rate"], as_index=False)["score"].mean().to_string(index=False))
