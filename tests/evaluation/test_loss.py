"""The loss of each held-out example: that of transformers, whatever shares its batch."""
import copy
import dataclasses

import numpy as np
import pytest
import torch

import peftkit
from peftkit.data.collate import encode
from peftkit.data.encoded import IGNORE
from peftkit.errors import PeftkitError
from peftkit.evaluation import answer_losses
from peftkit.training.features import cache_features
from peftkit.training.forward import answer_loss

from ..methods.weights import perturb

BASES = ("tiny_llava", "tiny_idefics2", "tiny_qwen2_vl", "tiny_paligemma")
ROWS = 7


@pytest.fixture(scope="module", params=BASES)
def base(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def task():
    """Captions, whose lengths differ."""
    return peftkit.task("flickr30k", train_size=1, validation_size=1, test_size=ROWS)


@pytest.fixture(scope="module")
def encoded(base, task):
    return encode(base.processor, task.test, task.prompt)


def moved(base, method, **options):
    """The method on the base, away from its start, in train mode."""
    return perturb(peftkit.inject(copy.deepcopy(base.model), method, **options).train(), 0.1, seed=3)


@torch.no_grad()
def loss_of_transformers(model, encoded, row):
    """The row alone in its own forward pass, with the loss of the model's own class."""
    batch = encoded.training_batch([row])
    shifted = batch.pop("labels")
    labels = torch.full_like(shifted, IGNORE)
    labels[:, 1:] = shifted[:, :-1]  # transformers shifts its labels itself
    return model(**batch, labels=labels, use_cache=False).loss.item()


@pytest.mark.parametrize("base, method", [*((name, method) for name in BASES for method in ("lora", "prefix")),
                                          ("tiny_llava", "prompt"), ("tiny_idefics2", "prompt")], indirect=["base"])
def test_each_loss_is_that_of_transformers_in_whatever_batch(base, encoded, method):
    model = moved(base, method, connector="tuned", **({"dropout": 0.5} if method == "lora" else {}))
    losses = [answer_losses(model, None, encoded, batch_size=size) for size in (1, 3, 64)]
    expected = [loss_of_transformers(model, encoded, row) for row in range(ROWS)]
    assert len(set(encoded.lengths())) > 2 and np.ptp(expected) > 1e-3
    for found in losses:
        assert found.shape == (ROWS,)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_their_mean_over_tokens_is_the_loss_that_training_lowers(base, encoded):
    model = moved(base, "adapter").eval()
    losses = answer_losses(model, None, encoded)
    whole = answer_loss(model, encoded.training_batch(list(range(ROWS)))).item()
    assert np.average(losses, weights=[len(answer) for answer in encoded.answers]) == pytest.approx(whole, abs=1e-5)


def test_kept_features_and_rows_of_a_data_set_give_the_same(tiny_llava, task):
    model = moved(tiny_llava, "lora", connector="tuned")
    rows = encode(tiny_llava.processor, task.test, task.prompt)
    expected = answer_losses(model, None, rows)
    np.testing.assert_allclose(answer_losses(model, None, cache_features(model, dataclasses.replace(rows))), expected,
                               rtol=0, atol=1e-5)
    np.testing.assert_array_equal(answer_losses(model, tiny_llava.processor, task.test, prompt=task.prompt), expected)
    assert not model.training and all(p.grad is None for p in model.parameters())


def test_a_batch_without_rows_is_refused():
    with pytest.raises(PeftkitError, match="batch_size is 0; accepted: a whole number above 0"):
        answer_losses(None, None, None, batch_size=0)
