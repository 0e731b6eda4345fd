"""Building a bundled base: the whole chain with a recipe of very few steps."""
import dataclasses
import json

import pytest

from peftkit.models import load
from peftkit.models.loading import weights_hash
from peftkit.zoo import build as module
from peftkit.zoo.recipes import RECIPES, Stage


@pytest.fixture
def short_recipes(monkeypatch):
    short = Stage(2, 1e-3, 4)
    quick = {name: dataclasses.replace(recipe, vision=short, language=short, alignment=short, instruction=short)
             for name, recipe in RECIPES.items()}
    monkeypatch.setattr(module, "RECIPES", quick)
    monkeypatch.setattr(module, "TEST_SIZE", 4)
    return quick


@pytest.mark.parametrize("name", ["tiny-llava-s", "tiny-idefics2"])
def test_build_writes_a_loadable_base_with_its_manifest_and_is_repeatable(name, short_recipes, tmp_path):
    manifest = module.build(name, tmp_path)
    assert json.loads((tmp_path / name / "manifest.json").read_text()) == json.loads(json.dumps(manifest))
    assert manifest["hash"] == weights_hash(tmp_path / name) == load(str(tmp_path / name)).hash
    assert set(manifest["stages"]) == {"vision", "language", "alignment", "instruction"}
    assert len(manifest["scores"]) == 13 and all(0 <= score <= 1 for score in manifest["scores"].values())
    assert module.build(name, tmp_path)["hash"] == manifest["hash"]


def test_an_interrupted_build_leaves_the_old_base(short_recipes, tmp_path, monkeypatch):
    old = module.build("tiny-llava-s", tmp_path)["hash"]
    monkeypatch.setattr(module.Pretraining, "alignment_stage", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        module.build("tiny-llava-s", tmp_path)
    assert weights_hash(tmp_path / "tiny-llava-s") == old
