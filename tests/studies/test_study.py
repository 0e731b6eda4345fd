"""A study is a grid: which runs it names, which it does, and what it refuses before it starts."""
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest

from peftkit.errors import PeftkitError, choose
from peftkit.studies import RunStore, Study

BASES = ("tiny-llava-s", "tiny-llava-m")


@dataclass(frozen=True)
class FakeTrainConfig:
    epochs: int = 3
    learning_rate: float = 1e-3
    seed: int = 42
    progress: bool = True


def fake_run(config, checkpoints=None):
    """A record whose score is the seed, without a model."""
    train = {
        "status": "success", "train_time": 1.0, "num_trainable_params": 1, "num_total_params": 2, "parameters": {},
        "peak_memory_mb": 1.0, "losses": [], "samples_per_second": 1.0, "steps": 1,
    }  # fmt: skip
    metrics = {"metric": "exact_match", "score": (config["seed"] or 0) / 10, "num_examples": 1, "eval_time": 0.1}
    answers = pd.DataFrame({"question_id": ["a"], "prediction": ["red"], "score": [1.0]})
    return {"train_info": train, "metrics": metrics, "meta_info": {}}, answers


def only_rank(method, options):
    for name in options:
        choose(f"option of {method}", name, ["rank"])


@pytest.fixture(autouse=True)
def rooms(monkeypatch):
    """Stand-ins for the rooms that a study asks for names, so that no model is needed."""
    contents = {
        "data": {"SPECS": {"vizwiz": 1, "okvqa": 2}},
        "methods": {"METHODS": {"lora": 1, "ia3": 2}, "method_options": only_rank},
        "models": {"load": lambda name: SimpleNamespace(hash=f"hash of {choose('base', name, BASES)}")},
        "training": {"TrainConfig": FakeTrainConfig},
    }
    for name, content in contents.items():
        module = ModuleType(f"peftkit.{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, f"peftkit.{name}", module)


@pytest.fixture
def study(tmp_path):
    def make(**changes):
        grid = {"bases": BASES, "methods": {"none": {}, "lora": {"rank": 8}, "ia3": {}}, "tasks": ["vizwiz", "okvqa"]}
        fixed = {"seeds": [1, 2], "store": tmp_path / "store", "run_one": f"{__name__}:fake_run"}
        return Study("test", **(grid | fixed | changes))

    return make


def test_grid(study):
    configs = study().configs()
    assert len(configs) == 2 * 2 * (1 + 2 * 2 * 2)
    assert len({str(config) for config in configs}) == len(configs)
    assert configs[0] == {
        "study": "test", "base": "tiny-llava-s", "base_hash": "hash of tiny-llava-s", "method": "none", "options": {},
        "task": "vizwiz", "train_size": 1000, "test_size": 400, "seed": None, "train": {},
    }  # fmt: skip
    assert configs[1] == {
        "study": "test", "base": "tiny-llava-s", "base_hash": "hash of tiny-llava-s", "method": "lora",
        "options": {"rank": 8, "connector": "frozen"}, "task": "vizwiz", "train_size": 1000, "test_size": 400,
        "seed": 1, "train": {"epochs": 3, "learning_rate": 1e-3},
    }  # fmt: skip


def test_variants_and_their_own_connector(study):
    methods = {"lora": [{"rank": 4}, {"rank": 8, "connector": "tuned"}]}
    options = [config["options"] for config in study(methods=methods, seeds=[1], tasks=["okvqa"]).configs()[:3]]
    assert options == [
        {"rank": 4, "connector": "frozen"}, {"rank": 4, "connector": "tuned"}, {"rank": 8, "connector": "tuned"},
    ]  # fmt: skip


def test_variants_may_tune_the_tower_or_the_vocabulary(study):
    methods = {"lora": [{"vision": "tuned", "connector": "tuned"}, {"vocabulary": "tuned"}]}
    options = [config["options"] for config in study(methods=methods, seeds=[1], tasks=["okvqa"]).configs()[:3]]
    assert options == [
        {"vision": "tuned", "connector": "tuned"}, {"vocabulary": "tuned", "connector": "frozen"},
        {"vocabulary": "tuned", "connector": "tuned"},
    ]  # fmt: skip


def test_settings_from_general_to_special(study):
    settings = {"all": {"epochs": 1}, "tiny-llava-m": {"epochs": 2}, "lora": {"learning_rate": 0.1}}
    settings["tiny-llava-m/lora"] = {"epochs": 9}
    found = {(c["base"], c["method"]): tuple(c["train"].values()) for c in study(settings=settings).configs()}
    assert found["tiny-llava-s", "lora"] == (1, 0.1) and found["tiny-llava-s", "ia3"] == (1, 1e-3)
    assert found["tiny-llava-m", "lora"] == (9, 0.1) and found["tiny-llava-m", "ia3"] == (2, 1e-3)


def test_run_does_what_is_missing_once(study):
    small = study(tasks=["okvqa"], seeds=[1, 2], bases=BASES[:1])
    assert len(small.missing()) == 9
    frame = small.run(workers=0, progress=False)
    assert small.missing() == [] and len(frame) == 9
    assert frame["method"].tolist() == ["none"] + ["lora"] * 4 + ["ia3"] * 4
    assert frame.query("seed == 2")["score"].eq(0.2).all()
    grown = study(tasks=["okvqa"], seeds=[1, 2, 3], bases=BASES[:1])
    assert [config["seed"] for config in grown.missing()] == [3] * 4
    assert len(small.frame()) == 9, "the store holds more than this study asks for"


def test_store_may_be_a_store(study, tmp_path):
    store = RunStore(tmp_path)
    assert study(store=store).store is store


@pytest.mark.parametrize(("change", "message"), [
    ({"bases": ["tiny-lava-s"]}, "unknown base 'tiny-lava-s'; did you mean 'tiny-llava-s'"),
    ({"tasks": ["vizwis"]}, "unknown task 'vizwis'; did you mean 'vizwiz'"),
    ({"methods": {"lore": {}}}, "unknown method 'lore'; did you mean 'lora'"),
    ({"methods": {"none": {"rank": 8}}}, "takes no options"),
    ({"connectors": ["tune"]}, "unknown connector 'tune'; did you mean 'tuned'"),
    ({"methods": {"lora": {"connector": "tune"}}}, "unknown connector 'tune'; did you mean 'tuned'"),
    ({"methods": {"lora": {"vision": "tune"}}}, "unknown vision 'tune'; did you mean 'tuned'"),
    ({"methods": {"lora": [{}, {"vocabulary": True}]}}, "unknown vocabulary True; accepted: frozen, tuned"),
    ({"methods": {"lora": [{"rank": 8}, {"ranks": 4}]}}, "unknown option of lora 'ranks'; did you mean 'rank'"),
    ({"settings": {"prefix": {}}}, "unknown key of settings 'prefix'"),
    ({"settings": {"lora": {"learning_rat": 1}}}, "unknown training setting 'learning_rat'; did you mean"),
    ({"settings": {"lora": {"seed": 1}}}, "unknown training setting 'seed'"),
])  # fmt: skip
def test_unknown_names_are_refused_before_anything_starts(study, change, message):
    with pytest.raises(PeftkitError, match=message):
        study(**change)
