"""Rotations and norms in fewer passes: the same values and gradients, and nothing is left behind."""
import copy

import pytest
import torch
from transformers.models.llama import modeling_llama

import peftkit
from peftkit.data.collate import encode
from peftkit.training.few_passes import few_passes
from peftkit.training.forward import answer_loss

torch_rotate = modeling_llama.apply_rotary_pos_emb


def test_a_rotation_and_its_gradient_are_those_of_transformers():
    torch.manual_seed(0)
    angles = torch.randn(2, 5, 4).repeat(1, 1, 2)  # (B, L, head), both halves alike
    q, k, g, h = torch.randn(4, 2, 3, 5, 8).unbind()
    q.requires_grad_(), k.requires_grad_()

    def turned():
        outputs = modeling_llama.apply_rotary_pos_emb(q, k, angles.cos(), angles.sin())
        return [*outputs, *torch.autograd.grad(outputs, [q, k], [g, h])]

    expected = turned()
    with few_passes(torch.nn.Identity()):
        assert modeling_llama.apply_rotary_pos_emb is not torch_rotate
        found = turned()
        halves = [tensor.detach().bfloat16() for tensor in (q, k, angles.cos(), angles.sin())]
        in_bfloat16 = modeling_llama.apply_rotary_pos_emb(*halves)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected))
    assert all(torch.equal(a, b) for a, b in zip(in_bfloat16, torch_rotate(*halves)))
    assert modeling_llama.apply_rotary_pos_emb is torch_rotate


def test_a_norm_and_its_gradient_are_those_of_transformers():
    torch.manual_seed(0)
    norm = modeling_llama.LlamaRMSNorm(16, eps=0.1).requires_grad_(False)
    norm.weight.normal_()
    x, g = torch.randn(2, 3, 16, requires_grad=True), torch.randn(2, 3, 16)
    expected, before = norm(x), torch.autograd.grad(norm(x), x, g)[0]
    with few_passes(norm):
        found, after = norm(x), torch.autograd.grad(norm(x), x, g)[0]
        assert "_Norm" in type(found.grad_fn).__name__
        assert norm.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert torch.allclose(found, expected, atol=1e-6) and torch.allclose(after, before, atol=1e-6)
    assert "forward" not in vars(norm)


@pytest.mark.parametrize("base", ["tiny_llava", "tiny_idefics2", "tiny_qwen2_vl", "tiny_paligemma"])
@pytest.mark.parametrize("method", ["lora", "layernorm", "prefix", "side"])
def test_losses_and_gradients_of_models_stay(request, base, method):
    given = request.getfixturevalue(base)
    task = peftkit.task("vqav2", train_size=4, validation_size=1, test_size=1)
    batch = encode(given.processor, task.train, task.prompt).training_batch([*range(4)])
    model = peftkit.inject(copy.deepcopy(given.model), method)

    def passed():
        model.zero_grad()
        loss = answer_loss(model, batch)
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    loss, expected = passed()
    with few_passes(model):
        again, found = passed()
    assert again == pytest.approx(loss, rel=1e-6) and found.keys() == expected.keys()
    assert all(torch.allclose(found[n], g, rtol=0, atol=1e-5 * max(1, g.abs().max())) for n, g in expected.items())
