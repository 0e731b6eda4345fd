"""One run: a configuration in, the parts of its record and its predictions out."""
import copy
import os
import platform
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from peft import PeftModel
from torch import nn

from ..data import Encoded, Task, encode, task
from ..errors import PeftkitError
from ..evaluation import evaluate
from ..methods import inject, trainable_map
from ..models import Base, load
from ..training import Checkpoints, TrainConfig, TrainResult, train
from ..training.features import cache_features, can_cache

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy")


def run_one(config: dict, checkpoints: Path | None = None,
            watch: Callable[[PeftModel, Base, int], None] | None = None) -> tuple[dict, pd.DataFrame]:
    """Train and test as `config` says (see `Study.configs`); method "none" only tests.

    checkpoints: a folder of this run alone, which is left as it is: whoever stores the record removes it.
    watch: called after every epoch with the model, its base and the number of the epoch.

    Returns the record's parts (train_info, metrics, meta_info) and predictions (question_id, prediction, score).
    What several runs share is kept per process (base, encoded data); vision features may lie on disk, for all of them.
    """
    base = _base(config["base"])
    if config["base_hash"] != base.hash:
        raise PeftkitError(f"{config['base']} has weights {base.hash}, the run asks for {config['base_hash']}")
    drawn, train_rows, test_rows = _data(config["base"], config["task"], config["train_size"], config["test_size"])
    if config["method"] == "none":
        model, train_info = base.model, of_untrained(base.model)
    else:
        model = inject(copy.deepcopy(base.model), config["method"], seed=config["seed"], **config["options"])
        points = checkpoints and Checkpoints(checkpoints, keep=True)
        settings = TrainConfig(**config["train"], seed=config["seed"], progress=False)
        trained = train(model, base.processor, train_rows, settings, checkpoints=points,
                        after_epoch=watch and partial(watch, model, base))
        train_info = of_untrained(model) | of_training(trained)
    result = evaluate(model, base.processor, test_rows, metric=drawn.metric, max_new_tokens=drawn.max_new_tokens,
                      progress=False)
    predictions = pd.DataFrame({"question_id": result.question_ids, "prediction": result.predictions,
                                "score": result.scores})
    metrics = {"metric": result.metric, "score": result.score, "num_examples": len(predictions),
               "eval_time": result.seconds}
    return {"train_info": train_info, "metrics": metrics, "meta_info": machine()}, predictions


@lru_cache(maxsize=2)
def _base(name: str) -> Base:
    return load(name)


@lru_cache(maxsize=2)
def _data(base_name: str, task_name: str, train_size: int, test_size: int) -> tuple[Task, Encoded, Encoded]:
    base = _base(base_name)
    drawn = task(task_name, train_size=train_size, test_size=test_size)
    train_rows = encode(base.processor, drawn.train, drawn.prompt)
    test_rows = encode(base.processor, drawn.test, drawn.prompt, split="test")
    base.model.requires_grad_(False)
    if can_cache(base.model):
        cache_features(base.model, train_rows)
    return drawn, train_rows, test_rows


def of_untrained(model: nn.Module) -> dict:
    """The train_info of a record whose model has not been trained: its sizes."""
    regions = trainable_map(model)
    return {"status": "success", "train_time": 0.0, "num_trainable_params": int(regions["trainable"].sum()),
            "num_total_params": int(regions["total"].sum()), "parameters": regions.to_dict("index"),
            "peak_memory_mb": None, "losses": [], "samples_per_second": None, "steps": 0}


def of_training(result: TrainResult) -> dict:
    """What a training adds to the train_info of a record."""
    return {"train_time": result.seconds, "peak_memory_mb": result.peak_memory_mb, "losses": result.losses,
            "samples_per_second": result.samples_per_second, "steps": result.steps}


def machine() -> dict:
    """Versions of packages, and the machine."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"packages": {name: version(name) for name in PACKAGES},
            "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
                        "gpu": gpu, "platform": platform.platform(), "python": platform.python_version()}}
