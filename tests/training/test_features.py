"""Features of the frozen tower: made once a picture, the same from memory, from disk and from the tower itself."""
import copy
import dataclasses
import multiprocessing
import os
import time
from pathlib import Path

import peft
import pytest
import torch
import transformers
from huggingface_hub import constants

import peftkit
from peftkit import TrainConfig
from peftkit.data import encode
from peftkit.errors import PeftkitError
from peftkit.training import features, train
from peftkit.training.feature_store import FeatureStore, default_store
from peftkit.training.features import cache_features, tower_hash
from peftkit.training.forward import answer_loss
from peftkit.training.towers import TOWERS

PICTURES = 6  # of the twelve rows, each picture has two
SOME = list(range(0, 12, 2))  # a row about each picture


def shared_pictures(processor):
    """Twelve rows, two side by side about one picture."""
    task = peftkit.task("vqav2", train_size=12, validation_size=1, test_size=1)
    images = task.train["image"]
    return encode(processor, task.train.map(lambda row, n: {"image": images[n // 2]}, with_indices=True), task.prompt)


@pytest.fixture(scope="module", params=[f"tiny_{kind}" for kind in sorted(TOWERS)])
def base(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def _encoded(base):
    return shared_pictures(base.processor)


@pytest.fixture
def rows(_encoded):
    return dataclasses.replace(_encoded)


@pytest.fixture
def seen(base, monkeypatch):
    """The number of pictures in each batch that the tower gets."""
    batches, kind = [], base.model.config.model_type
    tower = TOWERS[kind]
    monkeypatch.setitem(TOWERS, kind, lambda model, pictures: batches.append(len(pictures["pixel_values"])) or
                        tower(model, pictures))
    return batches


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "features")


def shards(store):
    return sorted(store.folder.glob("[!.]*/*"))


def subset(rows, chosen):
    lists = {name: [getattr(rows, name)[r] for r in chosen]
             for name in ("prompts", "answers", "references", "question_ids", "picture_ids")}
    return dataclasses.replace(rows, **lists, pictures={name: value[chosen] for name, value in rows.pictures.items()})


# ---- once a picture --------------------------------------------------------------------------------------------------

def test_the_tower_runs_once_a_picture_and_never_again_with_a_store(base, rows, seen, store):
    kept = cache_features(base.model, dataclasses.replace(rows)).features
    assert sum(seen) == PICTURES and len(kept) == len(rows) and not kept[0].requires_grad
    for expected in (PICTURES, 0):
        seen.clear()
        mapped = cache_features(base.model, dataclasses.replace(rows), store).features
        assert sum(seen) == expected and all(map(torch.equal, mapped, kept))


def test_sets_that_overlap_share_their_pictures(base, rows, seen, store):
    cache_features(base.model, subset(rows, SOME[:4]), store)
    whole = cache_features(base.model, dataclasses.replace(rows), store)
    assert seen == [4, PICTURES - 4]
    own = cache_features(base.model, rows)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole.features, own.features))


def test_large_sets_are_made_of_several_shards(base, rows, store, monkeypatch):
    monkeypatch.setattr(features, "BATCH", 2)
    monkeypatch.setattr(features, "SHARD", 1)
    mapped = cache_features(base.model, dataclasses.replace(rows), store).features
    assert len(shards(store)) == PICTURES / 2
    assert all(map(torch.equal, mapped, cache_features(base.model, rows).features))


def test_memory_disk_and_the_tower_itself_give_the_same_gradients_to_the_bit(base, rows, store):
    model = peftkit.inject(copy.deepcopy(base.model), "lora", connector="tuned")
    variants = [rows, *(cache_features(model, dataclasses.replace(rows), place) for place in (None, store, store))]
    found = []
    for variant in variants:
        model.zero_grad()
        answer_loss(model, variant.training_batch(SOME)).backward()  # the same pictures in the same order as kept
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    assert any("modules_to_save" in name and value.any() for name, value in found[0].items())
    assert all(torch.equal(other[name], value) for other in found[1:] for name, value in found[0].items())


def test_training_uses_the_folder_that_the_environment_names(base, rows, seen, tmp_path, monkeypatch):
    config = TrainConfig(epochs=1, batch_size=4, learning_rate=5e-3, progress=False)
    losses = []
    for folder in ("", tmp_path, tmp_path):
        monkeypatch.setenv("PEFTKIT_FEATURES", str(folder))
        model = peftkit.inject(copy.deepcopy(base.model), "lora", connector="tuned")
        losses.append(train(model, base.processor, dataclasses.replace(rows), config).losses)
    assert losses[0] == losses[1] == losses[2] and seen == [PICTURES] * 2


def test_small_sets_stay_in_memory_unless_a_folder_is_named(base, rows, store, monkeypatch, tmp_path):
    monkeypatch.delenv("PEFTKIT_FEATURES", raising=False)
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path))
    assert default_store().folder.parts[-2:] == ("peftkit", "features") and default_store().smallest == 64e6
    assert cache_features(base.model, dataclasses.replace(rows)).features and not list(tmp_path.iterdir())
    bytes_once = sum(value[SOME].nbytes for value in rows.pictures.values())
    for smallest, expected in ((bytes_once + 1, 0), (bytes_once, 1)):
        store.smallest = smallest
        cache_features(base.model, dataclasses.replace(rows), store)
        assert len(shards(store)) == expected
    monkeypatch.setenv("PEFTKIT_FEATURES", str(tmp_path))
    assert default_store().folder == tmp_path and default_store().smallest == 0
    monkeypatch.setenv("PEFTKIT_FEATURES", "")
    assert default_store() is None


def test_a_bar_is_shown_on_request_when_it_takes_longer(base, rows, monkeypatch, capsys):
    for patience, progress in ((0, True), (0, False), (60, True)):
        monkeypatch.setattr(features, "PATIENCE", patience)
        cache_features(base.model, dataclasses.replace(rows), progress=progress)
        assert ("picture" in capsys.readouterr().err) == (progress and not patience)


# ---- what a tower is -------------------------------------------------------------------------------------------------

def _other_weight(model):
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if ".vis" in name).flatten()[-1] += 1e-3


def _other_layer(model):
    model.config.vision_feature_layer = -1


def _other_head(model):
    model.config.vision_config.num_attention_heads *= 2


@pytest.mark.parametrize("change", [_other_weight, _other_layer, _other_head, lambda model: model.to(torch.bfloat16)])
def test_another_tower_has_another_hash(base, rows, change):
    model = copy.deepcopy(base.model)
    before = tower_hash(model, rows.pictures)
    change(model)
    assert tower_hash(model, rows.pictures) != before


def test_the_hash_is_of_the_tower_alone_and_of_the_padded_shape(base, rows):
    before = tower_hash(base.model, rows.pictures)
    model = peftkit.inject(copy.deepcopy(base.model), "lora", connector="tuned")
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(1)
    assert tower_hash(model.get_base_model(), rows.pictures) == before
    wider = {name: torch.nn.functional.pad(value, (0, 8)) for name, value in rows.pictures.items()}
    assert tower_hash(base.model, wider) != before


def test_a_tower_with_adapters_is_kept_in_memory_alone(tiny_llava, store):
    rows = shared_pictures(tiny_llava.processor)
    config = peft.LoraConfig(target_modules=r".*vision_tower.*q_proj")
    model = peft.get_peft_model(copy.deepcopy(tiny_llava.model), config)
    assert cache_features(model.requires_grad_(False), rows, store).features and not shards(store)


def test_a_set_whose_rows_do_not_name_their_pictures_is_refused(base, rows):
    with pytest.raises(PeftkitError, match="3 picture_ids for 12 rows; accepted: one a row"):
        cache_features(base.model, dataclasses.replace(rows, picture_ids=rows.picture_ids[:3]))


# ---- limits and processes --------------------------------------------------------------------------------------------

def test_features_beyond_the_limit_are_not_kept_and_it_is_said(base, rows, store):
    store.limit = 1000
    with pytest.warns(UserWarning, match="the tower runs in every step: the features of 6 pictures take more than"):
        assert cache_features(base.model, rows, store).features is None
    assert not shards(store)


def _fill(folder: Path, ready, results) -> None:
    """A process of its own: load the base, wait for the other, fill the store, and tell what the tower was given."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    base = peftkit.load(folder)
    rows, tower, seen = shared_pictures(base.processor), TOWERS["llava"], []

    def slow(model, pictures):
        seen.append(len(pictures["pixel_values"]))
        time.sleep(1)
        return tower(model, pictures)

    TOWERS["llava"] = slow
    ready.wait(timeout=60)
    cache_features(base.model, rows, FeatureStore(folder / "features"))
    results.put((sum(seen), torch.stack(list(rows.features)).numpy()))


@pytest.mark.slow
def test_two_processes_that_start_at_once_run_the_tower_once_in_all(tiny_llava, tmp_path, monkeypatch):
    for part in (tiny_llava.model, tiny_llava.processor):
        part.save_pretrained(tmp_path)
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(2), context.Queue()
    paths = [str(Path(__file__).parent), str(Path(peftkit.__file__).parents[1])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    processes = [context.Process(target=_fill, args=(tmp_path, ready, results)) for _ in range(2)]
    for process in processes:
        process.start()
    (first, ours), (second, theirs) = (results.get(timeout=90) for _ in processes)
    for process in processes:
        process.join(timeout=30)
    assert sorted([first, second]) == [0, PICTURES] and (ours == theirs).all()
