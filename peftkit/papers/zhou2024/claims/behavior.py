"""Claims about what else fine-tuning does: transfer (G), hallucination (H), vision tower (I), trainable shares (J)."""
import pandas as pd

from ...cells import Cells
from ...claims import Claim, Effect
from ..cells import PAIRS
from ..shares import LANGUAGE, formula_share
from .predicates import ADAPTER, CONNECTORS, IA3, LORA, METHODS, PREFIX, SMALL, coin, each, lead, noise, share

POINTS = "points"
EPOCHS = tuple(f"epoch {epoch}" for epoch in (1, 2, 3, 4))  # past the minimum of the loss on held-out examples
TRANSFER = {"study": "zhou2024-transfer", "model": SMALL, "task": PAIRS}
JUDGED = {"study": "zhou2024-hallucination", "model": SMALL}
CAPTIONS = {"study": "zhou2024-captions", "model": SMALL, "task": "hallucinated"}
VISION = {"study": "zhou2024-vision", "model": SMALL, "task": ("scienceqa", "vizwiz", "okvqa", "ocrvqa")}
CAPTION_EPOCHS = tuple(f"epoch {epoch}" for epoch in (3, 6, 9, 12))
TUNED_ON = ("tuned_on iconqa_txt", "tuned_on flickr30k")
RIVALS = (LORA, IA3, PREFIX)
JUDGE_NOISE = 12.0  # two standard errors of a difference of two rates of 96 answers
COUNT_NOISE = 5.2  # and of two means over four epochs of a rate of 100 captions
LAST_DIGIT = 0.001  # percentage points: Table 15 has three decimals


def side_of_the_mean(method: str, sign: int):
    """Share of the six transfer pairs at which a method lies above (+1) or below (-1) the mean of the four."""
    def wins(cells: Cells) -> list[pd.Series]:
        return [sign * (cells.mean("zhou2024-transfer", SMALL, method, "tuned", pair, EPOCHS)
                        - cells.mean("zhou2024-transfer", SMALL, METHODS, "tuned", pair, EPOCHS)) for pair in PAIRS]

    return share(wins, f"{method} {'above' if sign > 0 else 'below'} the mean, % of pairs")


def best_epoch(arm: dict, best: str):
    """One epoch ahead of the other three."""
    return each(*(lead({"setting": best}, {"setting": other}, **arm, **TRANSFER)
                  for other in EPOCHS if other != best))


def share_errors(cells: Cells) -> dict[str, Effect]:
    """Trainable share minus what the formulas of the methods give, for both models and connectors."""
    return {f"{model} {method} {connector}": Effect(
        cells.mean("zhou2024-shares", model, method, connector, "trainable_percent")
        - formula_share(model, method, connector), -LAST_DIGIT, LAST_DIGIT)
        for model in LANGUAGE for method in METHODS for connector in CONNECTORS}


CLAIMS = [
    Claim("G1", "Overfitted on one task, the adapter does best on other tasks and prefix tuning worst.",
          where="Table 4", unit=POINTS, margin=noise("pairs"),
          predicate=each(*(lead(ADAPTER, rival, setting=EPOCHS, **TRANSFER) for rival in RIVALS),
                         *(lead(other, PREFIX, setting=EPOCHS, **TRANSFER) for other in (LORA, IA3)))),
    Claim("G2", "Over pairs of tasks the adapter lies above the mean of the four methods and prefix tuning below.",
          where="Figure 4", unit="%", margin=coin(6),
          predicate=each(side_of_the_mean("adapter", 1), side_of_the_mean("prefix-peft", -1))),
    Claim("G3", "The first overfitted epoch transfers best for adapter, IA3 and prefix tuning, the third for LoRA.",
          where="Table 4", unit=POINTS, margin=noise("pairs"),
          predicate=each(*(best_epoch(arm, "epoch 1") for arm in (ADAPTER, IA3, PREFIX)), best_epoch(LORA, "epoch 3"))),

    Claim("H1", "The adapter answers most truthfully and hallucinates least, tuned on either task.",
          where="Table 5", unit=POINTS, margin=JUDGE_NOISE,
          note="our runs have exact truth (POPE accuracy, CHAIR rate) in the place of the GPT-4 judge",
          predicate=each(*(lead(ADAPTER, rival, setting=task, task="truth", **JUDGED)
                           for rival in RIVALS for task in TUNED_ON),
                         *(lead(rival, ADAPTER, setting=task, task="hallucinated", **JUDGED)
                           for rival in RIVALS for task in TUNED_ON))),
    Claim("H2", "Captions of the adapter hold the fewest hallucinations, ever fewer by epoch, those of prefix tuning "
          "the most.",
          where="Table 7", unit=POINTS, margin=COUNT_NOISE,
          note="our runs have exact truth (CHAIR) in the place of the human count",
          predicate=each(*(lead(rival, ADAPTER, setting=CAPTION_EPOCHS, **CAPTIONS) for rival in RIVALS),
                         *(lead(PREFIX, other, setting=CAPTION_EPOCHS, **CAPTIONS) for other in (LORA, IA3)),
                         lead({"setting": "epoch 3"}, {"setting": "epoch 12"}, **ADAPTER, **CAPTIONS))),

    Claim("I1", "Tuning the vision encoder as well changes the mean of four tasks by less than 0.5.",
          where="Table 12", unit=POINTS, margin=noise("Avg"),
          predicate=each(*(lead({"setting": "vision tuned"}, {"setting": "vision frozen"}, low=-0.5, high=0.5,
                                method=method, **VISION) for method in METHODS))),

    Claim("J1", "The trainable shares follow from the shapes of model and method, to the third decimal.",
          where="Table 15", unit="percentage points", margin=0.0, exact=True,
          predicate=share_errors),
]
