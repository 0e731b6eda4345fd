"""Positions that no loss reads are dropped after the last attention: nothing that a loss sees changes."""
import copy

import pytest
import torch
from torch.nn import functional as F

import peftkit
from peftkit.data.collate import encode
from peftkit.data.encoded import IGNORE
from peftkit.methods import METHODS, leading_tokens
from peftkit.training.forward import answer_loss
from peftkit.training.last_block import learned_only


@pytest.fixture(scope="module", params=("tiny_llava", "tiny_idefics2"))
def base(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def batch(base):
    task = peftkit.task("vqav2", train_size=9, validation_size=1, test_size=1)
    return encode(base.processor, task.train, task.prompt).training_batch([*range(9)])


def injected(base, method, **options):
    model = peftkit.inject(copy.deepcopy(base.model), method, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def whole_loss(model, batch):
    """The loss from logits at every position."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits[:, leading_tokens(model):]
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORE)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_are_those_of_the_whole_pass(base, batch, method):
    model = injected(base, method)
    whole, ours = whole_loss(model, batch), answer_loss(model, batch)
    assert ours.item() == pytest.approx(whole.item(), rel=1e-5)
    expected, found = gradients(model, whole), gradients(model, ours)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=0, atol=1e-5 * max(1, gradient.abs().max())), name


def test_the_last_mlp_sees_answer_tokens_only_and_the_others_everything(base, batch):
    model, seen = injected(base, "lora"), []
    for block in model.get_base_model().get_submodule(peftkit.models.regions.architecture(model).blocks):
        block.mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[:2].numel()))
    answer_loss(model, batch)
    assert seen == [batch["labels"].numel(), (batch["labels"] != IGNORE).sum()]


def test_gradient_checkpointing_gives_the_same_gradients(base, batch):
    model = injected(base, "lora")
    expected = gradients(model, answer_loss(model, batch))
    model.get_base_model().gradient_checkpointing_enable()
    found = gradients(model.train(), answer_loss(model, batch))
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], rtol=0, atol=1e-6) for name in expected)


@pytest.mark.parametrize("method", ["lora", "multiway"])
def test_outside_the_block_the_model_is_as_it_was_even_after_an_error(base, batch, method):
    model, index = injected(base, method), torch.tensor([3, 5])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    before = model(**inputs).logits
    with pytest.raises(KeyError), learned_only(model, index):
        logits = model(**inputs).logits
        raise KeyError
    assert torch.allclose(logits, before.flatten(0, 1)[index][None], atol=1e-5)
    assert torch.equal(model(**inputs).logits, before)
