"""One run: trained on its target; tested on the target and on the four sources.

The record's metrics hold `looks`, a row an epoch: epoch; in the last one, and in all of a path's (`on_a_path`), the
score of each of the five tasks; of SPIDER `selected`, each tensor's share of entries that differ from the base's.
`full` in the main study has `afterwards` too: a row's name -> the five scores.
"""
import copy
from pathlib import Path

import pandas as pd
from peft import PeftModel
from torch import nn

from ...errors import PeftkitError
from ...evaluation import Evaluation, evaluate
from ...methods import inject
from ...methods.selective.tuner import tuned
from ...models import Base
from ...studies.run import machine, of_training, of_untrained
from ...training import TrainConfig, train
from ..splits import frozen_base, split
from .afterwards import each_afterwards, pull_as_released, summed_gradients
from .study import BASE, MAIN, RELEASED, SOURCES, on_a_path, row_of


def run_one(config: dict, checkpoints: Path | None = None) -> tuple[dict, pd.DataFrame]:
    """The parts of the record and the target's predictions (as `peftkit.studies.run.run_one`).

    A run takes seconds: one that was killed starts from its beginning, and `checkpoints` is not used.
    """
    base = frozen_base(config["base"])
    if config["base_hash"] != base.hash:
        raise PeftkitError(f"{config['base']} has weights {base.hash}, the run asks for {config['base_hash']}")
    if config["method"] == "none":
        model, trained, looks, afterwards = base.model, {}, [{"epoch": 0}], {}
    else:
        model = inject(copy.deepcopy(base.model), config["method"], seed=config["seed"], **config["options"])
        trained, looks, afterwards = trained_on_target(model, base, config)
    found = tested(model, config)
    looks[-1] |= _scores(found)
    target = found[config["task"]]
    metrics = {"metric": target.metric, "score": target.score, "num_examples": len(target.scores),
               "eval_time": target.seconds, "looks": looks, "afterwards": afterwards}
    predictions = pd.DataFrame({"question_id": target.question_ids, "prediction": target.predictions,
                                "score": target.scores})
    return {"train_info": of_untrained(model) | trained, "metrics": metrics, "meta_info": machine()}, predictions


def trained_on_target(model: PeftModel, base: Base, config: dict) -> tuple[dict, list[dict], dict]:
    """Train the model in place. Returns train_info, looks (the last without scores) and afterwards (see the module)."""
    row, looks = row_of(config), []
    _, rows = split(config["base"], config["task"], "train", config["train_size"])
    settings = TrainConfig(**config["train"], seed=config["seed"], progress=False)
    parent = row == "full" and config["study"] == MAIN and config["base"] == BASE
    sums = summed_gradients(model) if parent else {}
    if row == RELEASED:
        pull_as_released(model)

    def watch(epoch: int) -> None:
        scored = on_a_path(config) and epoch < settings.epochs
        looks.append({"epoch": epoch, **(_scores(tested(model, config)) if scored else {}),
                      **({"selected": selected(model)} if config["method"] == "spider" else {})})

    result = train(model, base.processor, rows, settings, after_epoch=watch)
    changes = each_afterwards(model, sums, rows, config["seed"]) if parent else ()
    return of_training(result), looks, {name: _scores(tested(model, config)) for name in changes}


def tested(model: nn.Module, config: dict) -> dict[str, Evaluation]:
    """The target and the sources by name, answered by a model of this run."""
    found = {}
    for name in (config["task"], *SOURCES):
        drawn, rows = split(config["base"], name, "test", config["test_size"])
        found[name] = evaluate(model, frozen_base(config["base"]).processor, rows, metric=drawn.metric,
                               max_new_tokens=drawn.max_new_tokens, progress=False)
    return found


def selected(model: nn.Module) -> dict[str, float]:
    """Each trained tensor's share of entries that differ from the base's: after SPIDER's merge, those with M > 0."""
    return {tensor.name: (tensor.weight != tensor.start()).float().mean().item() for tensor in tuned(model)}


def _scores(found: dict[str, Evaluation]) -> dict[str, float]:
    return {name: evaluation.score for name, evaluation in found.items()}
