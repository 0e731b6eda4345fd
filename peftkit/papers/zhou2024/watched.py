"""A run that is looked at while it trains: loss on held-out examples, other tasks (Table 4), hallucination (5 and 7).

The record's metrics hold `epochs`, a row an epoch: epoch, loss (mean over held-out examples), the score of each other
task, and at some epochs truth (accuracy on the POPE probes), answered (share of probes whose answer is yes or no),
hallucinated (CHAIR: share of captions that name a thing that is not there), mentions (share of such names) and recall
(share of the things that are named).
"""
from pathlib import Path

import pandas as pd

from ...data.vocabulary import DIGITS, SHAPES, WORDS
from ...evaluation import Evaluation, answer_losses, chair, evaluate, generate_answers
from ...models import Base
from ...studies.run import run_one as train_and_test
from ..splits import frozen_base, split
from .varied import SOURCES

PROBES = ("pope_random", "pope_popular", "pope_adversarial")
OBJECTS = (*SHAPES, *WORDS, *DIGITS)
HELD_OUT = 200  # examples of the validation split
LOOKS = 4  # at hallucination during a long run


def run_one(config: dict, checkpoints: Path | None = None) -> tuple[dict, pd.DataFrame]:
    """As `peftkit.studies.run.run_one`, with `epochs` in the metrics. A run that was killed starts from its beginning.

    Method "none" has one row, epoch 0.
    """
    rows: list[dict] = []
    if config["method"] == "none":
        parts, predictions = train_and_test(config)
        base = frozen_base(config["base"])
        rows.append(look(base.model, base, 0, config, probed=True))
    else:
        epochs, long = round(config["train"]["epochs"]), config["study"] == "zhou2024-transfer"
        every = max(1, epochs // LOOKS) if long else epochs

        def watch(model, base: Base, epoch: int) -> None:
            rows.append(look(model, base, epoch, config, probed=epoch % every == 0, others=long))

        parts, predictions = train_and_test(config, watch=watch)
    return parts | {"metrics": parts["metrics"] | {"epochs": rows}}, predictions


def look(model, base: Base, epoch: int, config: dict, probed: bool, others: bool = False) -> dict:
    """One row of `epochs`. probed: with the probes and captions. others: with the other two tasks of Table 4."""
    row = {"epoch": epoch, "loss": _loss(model, base, config["task"])}
    if others:
        row |= {name: _answers(model, base, name, config["test_size"]).score
                for name in SOURCES if name != config["task"]}
    return row | (hallucination(model, base, config["test_size"]) if probed else {})


def hallucination(model, base: Base, examples: int) -> dict[str, float]:
    """What a model says about things that are not there; all in [0, 1] (see the module)."""
    probes = {name: _answers(model, base, name, examples) for name in PROBES}
    truth = {name: found.score for name, found in probes.items()}
    answers = [answer for found in probes.values() for answer in found.predictions]
    drawn, rows = split(base.name, "caption", "test", examples)
    texts = generate_answers(model, base.processor, rows, drawn.max_new_tokens, progress=False)
    named = chair(texts, rows.references, OBJECTS)
    return {"truth": sum(truth.values()) / len(truth), **truth,
            "answered": sum(answer in ("yes", "no") for answer in answers) / len(answers),
            "hallucinated": named.chair_s, "mentions": named.chair_i, "recall": named.recall}


def _loss(model, base: Base, name: str) -> float:
    _, rows = split(base.name, name, "validation", HELD_OUT)
    return float(answer_losses(model, base.processor, rows).mean())


def _answers(model, base: Base, name: str, examples: int) -> Evaluation:
    drawn, rows = split(base.name, name, "test", examples)
    return evaluate(model, base.processor, rows, metric=drawn.metric, max_new_tokens=drawn.max_new_tokens,
                    progress=False)
