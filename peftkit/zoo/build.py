"""Build a bundled base: pre-train it by its recipe, save it, score it, and write the manifest."""
import json
import platform
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from ..data import SPECS, task
from ..errors import choose
from ..evaluation import evaluate
from ..models.loading import BUNDLED, load, weights_hash
from .processors import build_processor
from .recipes import RECIPES, Recipe, model_config
from .stages import Pretraining

TEST_SIZE = 1000  # examples a task for the scores in the manifest


def build(name: str, folder: Path = BUNDLED) -> dict:
    """Pre-train the base `name` on one thread and put it into `folder`/`name`; returns its manifest.

    Everything is written beside the target first, so an interrupted build leaves the old base in place.
    """
    recipe = RECIPES[choose("bundled base", name, RECIPES)]
    torch.set_num_threads(1)  # the same sums in the same order on every machine of the same kind
    torch.manual_seed(recipe.seed)
    model, processor = AutoModelForImageTextToText.from_config(model_config(recipe)), build_processor(recipe)
    pretraining = Pretraining(recipe, model, processor)
    pretraining.run()
    draft = Path(folder) / f".{name}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft)
    processor.save_pretrained(draft)
    manifest = write_manifest(recipe, draft, pretraining.log)
    target = Path(folder) / name
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    return manifest


def write_manifest(recipe: Recipe, folder: Path, stages: dict) -> dict:
    """Score the model in `folder` on every task's test split, untrained on it, and write manifest.json."""
    manifest = {
        "recipe": asdict(recipe), "seed": recipe.seed, "hash": weights_hash(folder), "stages": stages,
        "seconds": round(sum(stage["seconds"] for stage in stages.values()), 1),
        "machine": {"cores": 1, "cpu": platform.machine(), "python": platform.python_version()},
        "packages": {name: version(name) for name in ("torch", "transformers", "numpy", "pillow", "scikit-learn")},
        "test_size": TEST_SIZE, "scores": zero_shot(folder),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def zero_shot(name: str | Path, test_size: int = TEST_SIZE) -> dict[str, float]:
    """Score of an untouched base on the test split of every task but the probes, in [0, 1]."""
    base, scores = load(str(name)), {}
    for spec in (spec for spec in SPECS.values() if spec.role != "probe"):
        rows = task(spec.name, train_size=1, validation_size=1, test_size=test_size)
        result = evaluate(base.model, base.processor, rows.test, metric=rows.metric, prompt=rows.prompt,
                          max_new_tokens=rows.max_new_tokens, progress=False)
        scores[spec.name] = round(result.score, 4)
    return scores
