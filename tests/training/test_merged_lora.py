"""LoRA in one product gives what peft's own layers give."""
import copy

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear

import peftkit
from peftkit.data.collate import encode
from peftkit.training.forward import answer_loss
from peftkit.training.merged_lora import merged_lora


@pytest.fixture(scope="module")
def batch(tiny_llava):
    task = peftkit.task("vqav2", train_size=6, validation_size=1, test_size=1)
    return encode(tiny_llava.processor, task.train, task.prompt).training_batch([*range(6)])


def injected(base, method="lora", **options):
    model = peftkit.inject(copy.deepcopy(base.model), method, **options)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    return model


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = answer_loss(model, batch)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def replaced(model):
    return [module for module in model.modules() if isinstance(module, Linear) and "forward" in vars(module)]


@pytest.mark.parametrize("options", [{}, {"rank": 3, "alpha": 40, "placement": "mlp"}, {"connector": "tuned"}])
def test_loss_and_gradients_are_those_of_peft(tiny_llava, batch, options):
    model = injected(tiny_llava, **options)
    loss, expected = loss_and_gradients(model, batch)
    with merged_lora(model):
        assert len(replaced(model)) == sum(isinstance(module, Linear) for module in model.modules()) > 0
        again, found = loss_and_gradients(model, batch)
    assert again == pytest.approx(loss, rel=1e-6) and found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=0, atol=1e-5 * gradient.abs().max()), name


def test_a_bias_of_the_base_is_added_and_a_trained_input_gets_its_gradient():
    base, x = torch.nn.Linear(5, 7).requires_grad_(False), torch.randn(2, 3, 5, requires_grad=True)
    layer = Linear(base, "default", LoraConfig(r=2), r=2, lora_alpha=6)
    layer.lora_B.default.weight.data.normal_()
    layer.set_adapter("default")
    expected = layer(x)
    dx, = torch.autograd.grad(expected.square().sum(), x)
    with merged_lora(layer):
        found = layer(x)
        ours, = torch.autograd.grad(found.square().sum(), x)
    assert torch.allclose(found, expected, atol=1e-5) and torch.allclose(ours, dx, atol=1e-4)


@pytest.mark.parametrize("change", [
    lambda base: injected(base, dropout=0.5), lambda base: injected(base, "dora"), lambda base: merged(base),
    lambda base: injected(base).to(torch.bfloat16), lambda base: switched_off(base)])
def test_layers_of_another_kind_are_left_to_peft(tiny_llava, change):
    model = change(tiny_llava)
    with merged_lora(model):
        assert replaced(model) == []


def test_autocast_is_left_to_peft_and_the_layers_are_put_back(tiny_llava, batch):
    model = injected(tiny_llava)
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = loss_and_gradients(model, batch)
        with merged_lora(model):
            found, _ = loss_and_gradients(model, batch)
    assert found == expected and replaced(model) == []


def merged(base):
    model = injected(base)
    model.merge_adapter()
    return model


def switched_off(base):
    model = injected(base)
    model.base_model.disable_adapter_layers()
    return model
