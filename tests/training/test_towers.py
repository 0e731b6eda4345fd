"""Towers and connectors of every model type: kept features stand in for pictures, training and decoding agree."""
import copy

import pytest
import torch

import peftkit
from peftkit.data.collate import encode
from peftkit.methods.switches import trained_beside
from peftkit.training.features import cache_features, can_cache
from peftkit.training.forward import answer_loss
from peftkit.training.towers import TOWERS, image_tokens

SIZES = [(48, 48), (48, 24), (16, 40)]  # of pictures, width and height


@pytest.fixture(scope="module", params=sorted(TOWERS))
def base(request):
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture(scope="module")
def rows(base):
    """Six questions about pictures of three sizes."""
    data = peftkit.task("vqav2", train_size=6, validation_size=1, test_size=1).train
    data = data.map(lambda row, number: {"image": row["image"].resize(SIZES[number % 3])}, with_indices=True)
    return encode(base.processor, data, "{question}")


@torch.no_grad()
def test_tower_and_connector_give_the_models_own_image_tokens(base, rows):
    features = TOWERS[base.model.config.model_type](base.model, rows.pictures)
    expected = base.model.get_image_features(**rows.pictures_of(range(6)), return_dict=True).pooler_output
    tokens = image_tokens(base.model, features)
    assert len(features) == 6
    assert torch.allclose(tokens.flatten(0, -2), torch.cat(list(expected)), atol=1e-5)


@torch.no_grad()
def test_idefics2s_connector_sees_no_patch_beside_a_smaller_picture(tiny_idefics2):
    data = peftkit.task("vqav2", train_size=2, validation_size=1, test_size=1).train
    pictures = encode(tiny_idefics2.processor, data, "{question}").pictures
    for value in pictures.values():
        value[1, ..., 32:] = 0  # the second picture: 32 columns, or 3 x 2 patches
    expected = tiny_idefics2.model.get_image_features(**pictures, return_dict=True).pooler_output
    tokens = image_tokens(tiny_idefics2.model, TOWERS["idefics2"](tiny_idefics2.model, pictures))
    assert torch.allclose(tokens.flatten(0, -2), torch.cat(list(expected)), atol=1e-5)


@pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])
def test_kept_features_give_the_loss_and_the_connectors_gradients_of_pictures(base, rows, packed):
    model = peftkit.inject(copy.deepcopy(base.model), "lora", connector="tuned")
    assert can_cache(model)
    kept = cache_features(model, copy.copy(rows))
    found = []
    for encoded in (rows, kept):
        batch = (encoded.packed_batch if packed and not rows.two_way else encoded.training_batch)([4, 0, 5, 1])
        assert ("features" in batch) == (encoded is kept) != ("pixel_values" in batch)
        model.zero_grad()
        loss = answer_loss(model, batch)
        loss.backward()
        found.append((loss.item(), [p.grad.clone() for p in model.parameters() if id(p) in trained_beside(model)]))
    (loss, gradients), (again, other) = found
    assert again == pytest.approx(loss, abs=1e-5) and gradients
    assert all(torch.allclose(a, b, rtol=0, atol=1e-5 * max(1, a.abs().max())) for a, b in zip(gradients, other))


def test_two_epochs_lower_the_loss(base, rows):
    model = peftkit.inject(copy.deepcopy(base.model), "lora", connector="tuned")
    config = peftkit.TrainConfig(epochs=2, batch_size=2, learning_rate=1e-2, progress=False)
    losses = peftkit.train(model, base.processor, copy.copy(rows), config).losses
    assert len(losses) == 6 and sum(losses[3:]) < sum(losses[:3])


def test_answers_learned_by_heart_come_back(base, rows):
    """Positions and masks of decoding, with rows of unequal length together, are those of training."""
    model = peftkit.inject(copy.deepcopy(base.model), "language")
    config = peftkit.TrainConfig(epochs=60, batch_size=3, learning_rate=5e-3, progress=False)
    peftkit.train(model, base.processor, copy.copy(rows), config)
    assert len({accepted[0] for accepted in rows.references}) == 6
    assert peftkit.evaluate(model, base.processor, rows, batch_size=4, progress=False).score == 1
