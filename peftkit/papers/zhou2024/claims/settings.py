"""Claims about what else is varied: module location (D), data (E), module size, learning rate and stability (F)."""
from ...cells import Cells
from ...claims import Claim, Effect
from .predicates import (
    ADAPTER, ALL, CELL, IA3, LORA, METHODS, PREFIX, QWEN, SEEN, SMALL, UNSEEN, each, lead, noise)

POINTS, SD = "points", "points of standard deviation"
SEVEN = tuple(task for task in ALL if task != "flickr30k")
LOCATION = {"study": "zhou2024-location", "task": SEVEN}
DATA = {"study": "zhou2024-data", "model": SMALL}
SIZE = {"study": "zhou2024-size", "model": SMALL}
RATE = {"study": "zhou2024-rates", "model": SMALL}
ONE_K, FIVE_K, TEN_K = ({"setting": f"train_size {level}"} for level in (1, 2, 3))
SMALLEST, LARGEST = {"setting": "size 1"}, {"setting": "size 4"}
LOWEST, HIGHEST = {"setting": "learning_rate 1"}, {"setting": "learning_rate 4"}
OK, SQA = {"task": "okvqa"}, {"task": "scienceqa"}
SPREAD_NOISE = 0.3  # a standard deviation of three seeds near 0.5 has a standard error of about half its size


def relative_gains(cells: Cells) -> dict[str, Effect]:
    """Every method's relative gain of Avg from 1k to 5k examples, and by how much it beats that from 5k to 10k."""
    effects = {}
    for method in METHODS:
        few, some, many = (
            cells.mean("zhou2024-data", SMALL, method, "tuned", ALL, **level) for level in (ONE_K, FIVE_K, TEN_K))
        early, late = 100 * (some / few - 1), 100 * (many / some - 1)
        effects |= {f"{method} 1k→5k": Effect(early, low=10), f"{method} 1k→5k minus 5k→10k": Effect(early - late)}
    return effects


def unseen_gain_more(cells: Cells) -> dict[str, Effect]:
    """Gain from 1k to 10k examples: of unseen minus of seen tasks by method, and of unseen in the mean of methods."""
    def gain(method, tasks):
        return (cells.mean("zhou2024-data", SMALL, method, "tuned", tasks, **TEN_K)
                - cells.mean("zhou2024-data", SMALL, method, "tuned", tasks, **ONE_K))

    return {"U gains, all methods": Effect(gain(METHODS, UNSEEN), low=15),
            **{f"{method}: U gains − S gains": Effect(gain(method, UNSEEN) - gain(method, SEEN)) for method in METHODS}}


def grows_and_forgets(arm: dict):
    """From the smallest to the largest module, OKVQA falls and ScienceQA rises."""
    return each(lead(SMALLEST, LARGEST, name="OKVQA, smallest − largest", **SIZE, **arm, **OK),
                lead(LARGEST, SMALLEST, name="ScienceQA, largest − smallest", **SIZE, **arm, **SQA))


def best_places(model: str):
    """LoRA and IA3 with both places ahead of one, the adapter with the MLP ahead of the other two."""
    both, mlp, attention = ({"setting": f"placement {place}"} for place in ("both", "mlp", "attention"))
    return each(*(lead(best, other, model=model, **LOCATION, **arm)
                  for arm, best in ((LORA, both), (IA3, both), (ADAPTER, mlp))
                  for other in (both, mlp, attention) if other != best))


CLAIMS = [
    Claim("D1", "LoRA and IA3 are best in attention and MLP together, the adapter in the MLP alone.",
          where="Tables 2 and 13", unit=POINTS, margin=noise("Avg"),
          predicate=each(best_places(SMALL), best_places(QWEN))),

    Claim("E1", "Every method gains from 1k to 5k and from 5k to 10k examples.",
          where="Table 3", unit=POINTS, margin=noise("Avg"),
          predicate=each(*(lead(more, less, **DATA, method=method) for method in METHODS
                           for more, less in ((FIVE_K, ONE_K), (TEN_K, FIVE_K))))),
    Claim("E2", "Every method gains more than 10 % of its score from 1k to 5k examples, and less after.",
          where="Table 3, Figure 6", unit="%", margin=100 * noise("Avg") / 65,  # scores are near 65
          predicate=relative_gains),
    Claim("E3", "More data helps unseen tasks, by 15 points or more, and unseen tasks more than seen ones.",
          where="Table 3", unit=POINTS, margin=noise("S"), note="in print prefix tuning gains 11.6 on seen tasks too",
          predicate=unseen_gain_more),

    Claim("F1", "A larger adapter is worse on OKVQA (seen) and better on ScienceQA (unseen).",
          where="Table 6", unit=POINTS, margin=CELL,
          predicate=grows_and_forgets(ADAPTER)),
    Claim("F2", "A larger LoRA is worse on OKVQA and better on ScienceQA.",
          where="Table 6", unit=POINTS, margin=CELL,
          predicate=grows_and_forgets(LORA)),
    Claim("F3", "A longer prefix is worse on OKVQA and better on ScienceQA.",
          where="Table 6", unit=POINTS, margin=CELL, note="printed standard deviation at 40 tokens: 19.2",
          predicate=grows_and_forgets(PREFIX)),
    Claim("F4", "LoRA's scatter between seeds on OKVQA shrinks as its rank grows.",
          where="Table 6", unit=SD, margin=SPREAD_NOISE,
          predicate=lead(SMALLEST, LARGEST, **SIZE, **LORA, **OK, value="spread")),
    Claim("F5", "The adapter scatters least between seeds, at the default sizes.",
          where="abstract, Table 6", unit=SD, margin=SPREAD_NOISE,
          predicate=each(*(lead(other, ADAPTER, model=SMALL, value="spread", task=("okvqa", "scienceqa"))
                           for other in (LORA, PREFIX)))),
    Claim("F6", "A lower learning rate of LoRA raises OKVQA and lowers ScienceQA.",
          where="Table 14", unit=POINTS, margin=CELL,
          predicate=each(lead(LOWEST, HIGHEST, name="OKVQA, lowest − highest rate", **RATE, **LORA, **OK),
                         lead(HIGHEST, LOWEST, name="ScienceQA, highest − lowest rate", **RATE, **LORA, **SQA))),
]
