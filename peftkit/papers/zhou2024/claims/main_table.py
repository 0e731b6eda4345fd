"""Claims about the main table: which method is best (A), what the connector does (B), unseen and seen tasks (C)."""
from ...cells import Cells
from ...claims import Claim, Effect
from .predicates import (
    ADAPTER, CONNECTORS, EVERY, FROZEN, IA3, LARGE, LLAVA, LORA, METHODS, PREFIX, QWEN, SEEN, SHAREGPT, SMALL,
    TUNED, UNSEEN, ahead, best_is_one_of, coin, each, lead, noise, order, share)

POINTS = "points"
LARGER = "tiny-llava-m stands for the 13B model, tiny-llava-s for the 7B one"
RESAMPLER = "tiny-idefics2 stands for Qwen-VL-Chat: its connector is a resampler too"
VOCABULARY = "; for Qwen the released code trains the vocabulary instead of the connector"  # facts 6.2
SETTINGS = [{"method": method, "connector": connector} for method in METHODS for connector in CONNECTORS]
RANKING = (ADAPTER, LORA, IA3, PREFIX)


def connector_gains(*models: str):
    """Share of model × method at which tuning the connector raises the mean of the unseen tasks."""
    def wins(cells: Cells):
        arms = [("zhou2024", model, method) for model in models if model in cells.models for method in METHODS]
        return [cells.mean(*arm, "tuned", UNSEEN) - cells.mean(*arm, "frozen", UNSEEN) for arm in arms]

    return share(wins, "U tuned > U frozen, % of model × method")


def least_moved(cells: Cells) -> dict[str, Effect]:
    """How much further than the adapter's the other methods' U moves when the connector is tuned, either way."""
    moved = {method: (cells.mean("zhou2024", EVERY, method, "tuned", UNSEEN)
                      - cells.mean("zhou2024", EVERY, method, "frozen", UNSEEN)).abs() for method in METHODS}
    return {f"|{method}| − |adapter|": Effect(moved[method] - moved["adapter"]) for method in METHODS
            if method != "adapter"}


CLAIMS = [
    Claim("A1", "The adapter is the best method everywhere, in the mean of all tasks and models: with the connector "
          "frozen and with it tuned.",
          where="abstract, Table 1", unit=POINTS, margin=noise("Avg", 4),
          note="in print true with the connector tuned only, and only because of Qwen-VL-Chat: A1.tuned, A1.llava",
          predicate=each(ahead(ADAPTER, RANKING, **TUNED), ahead(ADAPTER, RANKING, **FROZEN))),
    Claim("A1.tuned", "With the connector tuned the ranking is adapter > LoRA > IA3 > prefix tuning.",
          where="Table 1", unit=POINTS, margin=noise("Avg", 4),
          predicate=order(*RANKING, **TUNED)),
    Claim("A1.llava", "With the connector tuned the adapter is best, even without Qwen-VL-Chat.",
          where="Table 1", unit=POINTS, margin=noise("Avg", 3),
          predicate=ahead(ADAPTER, RANKING, **TUNED, model=LLAVA)),
    Claim("A2", "The larger model with IA3 and a tuned connector is the best setting of all.",
          where="Table 1", unit=POINTS, margin=noise("Avg"), note=LARGER,
          predicate=ahead({"model": LARGE, **IA3, **TUNED},
                          [{"model": model, **setting} for model in EVERY for setting in SETTINGS])),
    Claim("A3", "LoRA with a frozen connector is the best setting of Qwen-VL-Chat.",
          where="Table 1", unit=POINTS, margin=noise("Avg"), note=RESAMPLER,
          predicate=ahead({**LORA, **FROZEN}, SETTINGS, model=QWEN)),
    Claim("A4", "The larger model beats the smaller one in every setting.",
          where="Table 1", unit=POINTS, margin=noise("Avg"), note=LARGER,
          predicate=each(*(lead({"model": LARGE}, {"model": SMALL}, **setting) for setting in SETTINGS))),
    Claim("A5", "ShareGPT4V beats LLaVA-1.5-7B in every setting but IA3 with a frozen connector.",
          where="Table 1", unit=POINTS, margin=noise("Avg"),
          untestable="no two bundled bases differ by their captions in pre-training alone",
          predicate=each(*(lead({"model": SHAREGPT}, {"model": SMALL}, **setting)
                           for setting in SETTINGS if setting != {**IA3, **FROZEN}))),

    Claim("B1", "Tuning the connector helps unseen tasks: in most settings of the LLaVA-type models.",
          where="abstract, Table 1, Figure 2", unit="%", margin=coin(12),
          predicate=connector_gains(*LLAVA)),
    Claim("B1.qwen", "Tuning the connector helps unseen tasks: in most settings of Qwen-VL-Chat.",
          where="Table 1", unit="%", margin=coin(4), note=RESAMPLER + VOCABULARY,
          predicate=connector_gains(QWEN)),
    Claim("B2", "LoRA, prefix tuning and IA3 each gain on unseen tasks when the connector is tuned.",
          where="Figure 2", unit=POINTS, margin=noise("U", 4),
          predicate=each(*(lead(TUNED, FROZEN, task=UNSEEN, **arm) for arm in (LORA, PREFIX, IA3)))),
    Claim("B3", "IA3 gains at least 10 points on unseen tasks, on each LLaVA-type model.",
          where="Table 1, Figure 2", unit=POINTS, margin=noise("U"),
          predicate=each(*(lead(TUNED, FROZEN, low=10, task=UNSEEN, model=model, **IA3) for model in LLAVA))),
    Claim("B4", "A frozen connector keeps the seen tasks better: over all models, and over the LLaVA-type alone.",
          where="Table 1, Figure 2", unit=POINTS, margin=noise("S", 3),
          predicate=each(lead(FROZEN, TUNED, task=SEEN, name="frozen − tuned, all models"),
                         lead(FROZEN, TUNED, task=SEEN, model=LLAVA, name="frozen − tuned, LLaVA-type"))),
    Claim("B5", "Qwen-VL-Chat loses on seen tasks when the connector is tuned, in the mean of the methods.",
          where="Table 1", unit=POINTS, margin=noise("S"), note=RESAMPLER + VOCABULARY,
          predicate=lead(FROZEN, TUNED, task=SEEN, model=QWEN)),
    Claim("B6", "The adapter's mean of unseen tasks moves least when the connector is tuned.",
          where="Figure 2", unit=POINTS, margin=noise("U", 4),
          predicate=least_moved),

    Claim("C1", "LoRA or the adapter is best on most unseen tasks.",
          where="Table 1", unit="%", margin=coin(40),
          predicate=best_is_one_of(("lora", "adapter"), UNSEEN)),
    Claim("C2", "IA3 or prefix tuning is best on OKVQA and VQAv2, mostly.",
          where="Table 1", unit="%", margin=coin(16),
          predicate=best_is_one_of(("ia3", "prefix-peft"), ("okvqa", "vqav2"))),
    Claim("C3", "Unseen tasks, connector frozen: LoRA > adapter, which is 10 points before prefix tuning > IA3.",
          where="Figure 2", unit=POINTS, margin=noise("U", 4),
          predicate=each(lead(LORA, ADAPTER, **FROZEN, task=UNSEEN),
                         lead(ADAPTER, PREFIX, low=10, **FROZEN, task=UNSEEN),
                         lead(PREFIX, IA3, **FROZEN, task=UNSEEN))),
    Claim("C4", "Unseen tasks, connector tuned: prefix tuning is at least 10 points behind LoRA and the adapter.",
          where="Figure 2", unit=POINTS, margin=noise("U", 4),
          predicate=each(*(lead(arm, PREFIX, low=10, **TUNED, task=UNSEEN) for arm in (LORA, ADAPTER)))),
    Claim("C5", "Connector tuned, LLaVA-type: adapter, LoRA and IA3 tie within 1 point in the mean of all tasks.",
          where="Table 1", unit=POINTS, margin=noise("Avg", 3),
          predicate=each(*(lead(one, two, low=-1, high=1, **TUNED, model=LLAVA)
                           for one, two in ((ADAPTER, LORA), (LORA, IA3), (ADAPTER, IA3))))),
]
