"""Rivals that change a model after training: DARE, grafting, Model Tailor."""
import copy
from functools import partial

import pytest
import torch
from torch import nn

import peftkit
from peftkit.errors import PeftkitError
from peftkit.methods import load_adapter
from peftkit.methods.selective import dare, graft, tailor
from peftkit.methods.selective.tailor import BLOCK, inverse_factor, standardized, tailored
from peftkit.methods.selective.tuner import tuned
from peftkit.training.forward import answer_loss

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")


@torch.no_grad()
def moved(model, scale=0.1):
    """Every trained entry away from its start, as full fine-tuning leaves it."""
    generator = torch.Generator().manual_seed(1)
    for tensor in tuned(model):
        tensor.weight.add_(scale * torch.randn(tensor.weight.shape, generator=generator))
    return model


def changed(model):
    return torch.cat([(tensor.weight != tensor.start()).flatten() for tensor in tuned(model)])


def weights(model):
    return [tensor.weight.detach().clone() for tensor in tuned(model)]


def mse(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def run(model, batch):
    model(batch[0])


def apply(name, model, batches):
    """One of the three, keeping a fifth."""
    {"dare": lambda: dare(model, drop=0.8), "graft": lambda: graft(model, batches, mse, share=0.2),
     "tailor": lambda: tailor(model, batches, run, share=0.2)}[name]()


# ---- all three -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method, options", [
    ("dare", {"drop": 0.9}), ("graft", {"share": 0.01}), ("tailor", {"share": 0.1})])
def test_a_patched_model_is_saved_sparsely_loaded_and_merged(tiny_llava, rows, tmp_path, method, options):
    base = lambda: copy.deepcopy(tiny_llava.model)
    model = moved(peftkit.inject(base(), "language", layers=1, connector="tuned"), 0.02)
    model.save_pretrained(tmp_path / "dense")
    batches = [rows.training_batch([0, 1]), rows.training_batch([2, 3])]
    apply = {"dare": dare, "graft": partial(graft, batches=batches, loss=answer_loss),
             "tailor": partial(tailor, batches=batches, run=answer_loss)}[method]
    apply(model, **options)
    inputs = {name: value for name, value in batches[0].items() if name != "labels"}
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        model.save_pretrained(tmp_path / "sparse")
        loaded = load_adapter(base(), tmp_path / "sparse")
        assert torch.equal(loaded(**inputs).logits, expected)
        assert torch.equal(loaded.merge_and_unload()(**inputs).logits, expected)
        assert not torch.equal(expected, tiny_llava.model(**inputs).logits)
    assert changed(model).float().mean().item() == pytest.approx({"dare": 0.1, "graft": 0.01, "tailor": 0.1}[method],
                                                                 abs=0.002)
    sizes = [(tmp_path / kind / "adapter_model.safetensors").stat().st_size for kind in ("sparse", "dense")]
    assert sizes[0] < 0.16 * sizes[1]
    assert all(tensor.weight.requires_grad and tensor.weight.grad is None for tensor in tuned(model))


@pytest.mark.parametrize("method", ["dare", "graft", "tailor"])
def test_the_same_call_gives_the_same_bits_and_the_base_keeps_its_own(toy, batches, method):
    first, second = moved(toy()), moved(toy())
    starts = [tensor.start().clone() for tensor in tuned(first)]
    for model in (first, second):
        apply(method, model, batches)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second)))
    assert all(torch.equal(tensor.start(), start) for tensor, start in zip(tuned(first), starts))
    assert first.peft_config["default"].sparse


@pytest.mark.parametrize("call, message", [
    (lambda model, batches: dare(model, drop=1.0), "drop is 1.0; accepted: 0 up to"),
    (lambda model, batches: dare(model, drop=-0.1), "drop is -0.1"),
    (lambda model, batches: graft(model, batches, mse, share=0), "share is 0; accepted: above 0"),
    (lambda model, batches: graft(model, batches, mse, share=1), "share is 1"),
    (lambda model, batches: graft(model, [], mse), "there are no batches"),
    (lambda model, batches: graft(model, batches, mse, epochs=0), "epochs is 0"),
    (lambda model, batches: graft(model, batches, mse, learning_rate=0), "learning_rate is 0"),
    (lambda model, batches: graft(model, batches, lambda *_: torch.ones((), requires_grad=True)), "no trained weight"),
    (lambda model, batches: tailor(model, batches, run, share=1.5), "share is 1.5"),
    (lambda model, batches: tailor(model, iter(()), run), "there are no batches"),
    (lambda model, batches: tailor(model, batches, run, damping=0), "damping is 0"),
    (lambda model, batches: tailor(model, batches, lambda *_: None), "no calibration batch reached 0.weight, 2.weight"),
])
def test_wrong_values_are_refused_and_change_nothing(toy, batches, call, message):
    model = moved(toy())
    before = weights(model)
    with pytest.raises(PeftkitError, match=message):
        call(model, batches)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model)))
    assert not model.peft_config["default"].sparse


def test_models_without_what_is_needed_are_refused(tiny_llava, toy, batches):
    with pytest.raises(PeftkitError, match="the trained weights equal the pre-trained ones"):
        graft(toy(), batches, mse)
    with pytest.raises(PeftkitError, match="no trained tensor is a linear layer's weight"):
        tailor(peftkit.inject(copy.deepcopy(tiny_llava.model), "layernorm"), [1], run)
    with pytest.raises(PeftkitError, match="holds no selective method"):
        dare(peftkit.inject(copy.deepcopy(tiny_llava.model), "lora"))


# ---- DARE ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("drop", [0.0, 0.5, 0.9])
def test_dare_drops_at_random_and_rescales_the_rest(tiny_llava, drop):
    model = moved(peftkit.inject(copy.deepcopy(tiny_llava.model), "language", layers=1), 0.02)
    deltas = [tensor.weight.detach() - tensor.start() for tensor in tuned(model)]
    dare(model, drop)
    kept = changed(model)
    assert kept.float().mean().item() == pytest.approx(1 - drop, abs=3e-3)  # of about 200,000
    for tensor, delta in zip(tuned(model), deltas):
        mask = tensor.weight != tensor.start()
        assert torch.allclose(tensor.weight, tensor.start() + mask * delta / (1 - drop), rtol=0, atol=1e-6)


def test_dares_seed_and_the_tensors_names_decide_what_is_dropped(toy):
    patterns = []
    for seed in (1, 1, 2):
        model = moved(toy())
        dare(model, 0.5, seed)
        patterns.append(changed(model))
    assert torch.equal(patterns[0], patterns[1]) and not torch.equal(patterns[0], patterns[2])


# ---- grafting --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_a_graft_keeps_exactly_the_share_of_all_entries_as_they_were_trained(toy, batches, share):
    model = moved(toy())
    trained = torch.cat([values.flatten() for values in weights(model)])
    graft(model, batches, mse, share=share)
    mask, now = changed(model), torch.cat([values.flatten() for values in weights(model)])
    assert mask.sum() == round(share * mask.numel())
    assert torch.equal(now[mask], trained[mask])


def test_before_it_learns_a_graft_keeps_the_most_moved_entries(toy, batches):
    model = moved(toy())
    sizes = torch.cat([(tensor.weight - tensor.start()).detach().abs().flatten() for tensor in tuned(model)])
    graft(model, batches, mse, share=0.2, learning_rate=1e-12)
    mask = changed(model)
    assert sizes[mask].min() > sizes[~mask].max()


def test_a_graft_learns_which_changes_the_loss_wants(toy, batches):
    model = toy()
    with torch.no_grad():
        for tensor in tuned(model):
            tensor.weight.add_(0.1)
    wanted = tuned(model)[3]  # the last bias: the loss asks for it, and against all others
    loss = lambda model, _: (wanted.weight - wanted.start() - 0.1).square().sum() + sum(
        (tensor.weight - tensor.start()).square().sum() for tensor in tuned(model)[:3])
    graft(model, batches, loss, share=3 / 58)
    assert [int((tensor.weight != tensor.start()).sum()) for tensor in tuned(model)] == [0, 0, 0, 3]


def test_a_frozen_adapter_stays_frozen(toy, batches):
    model = moved(toy())
    model.requires_grad_(False)
    graft(model, batches, mse, share=0.2)
    assert not any(p.requires_grad for p in model.parameters())


# ---- Model Tailor ----------------------------------------------------------------------------------------------------

def test_a_patch_of_one_row_is_the_least_squares_fit():
    x = torch.tensor([[1.0, 2.0, -1.0, 0.5], [2.0, 1.0, 1.0, 0.0]])  # (in, tokens)
    weight, start = torch.tensor([[1.1, 3.0]]), torch.tensor([[1.0, 2.0]])
    factor = inverse_factor(x @ x.T, damping=1e-9)
    new = tailored(weight, start, factor, share=0.5)  # the first entry moved less: it returns to W0
    # the second makes up for 0.1 x_1: 3 + 0.1 x_1.x_2 / x_2.x_2 = 3 + 0.1 * 3 / 6
    assert torch.allclose(new, torch.tensor([[1.0, 3.05]]), rtol=0, atol=1e-5)


def test_scores_and_kept_entries_are_those_of_the_formula():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 50, generator=generator)
    weight, start = torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)
    hessian = x @ x.T
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(6)
    factor = inverse_factor(x @ x.T, damping=0.01)
    assert torch.allclose(factor.T @ factor, torch.linalg.inv(hessian), rtol=0, atol=1e-6)
    assert torch.equal(factor, factor.triu())
    z = lambda v: (v - v.mean(1, keepdim=True)) / v.std(1, keepdim=True)
    score = 0.8 * z((weight - start).abs()) + 0.2 * z(weight ** 2 / factor.diagonal() ** 2)
    new = tailored(weight, start, factor, share=0.25)
    best = set(score.flatten().topk(6).indices.tolist())
    assert {i for i, differs in enumerate((new != start).flatten().tolist()) if differs} == best


def test_each_block_of_columns_keeps_the_share_and_what_follows_makes_up_for_the_rest():
    generator = torch.Generator().manual_seed(0)
    width = 2 * BLOCK + 44
    x = torch.randn(width, width, generator=generator) @ torch.randn(width, 900, generator=generator)
    weight, start = torch.randn(8, width, generator=generator), torch.randn(8, width, generator=generator)
    new = tailored(weight, start, inverse_factor(x @ x.T, 0.01), share=0.3)
    counts = [int((new != start)[:, first:first + BLOCK].sum()) for first in range(0, width, BLOCK)]
    assert counts == [round(0.3 * 8 * columns) for columns in (BLOCK, BLOCK, 44)]
    masked = torch.where(new != start, weight, start)
    error = lambda candidate: ((candidate - weight) @ x).square().sum()
    assert error(new) < 0.9 * error(masked)


def test_rows_of_equal_values_have_no_score():
    assert torch.equal(standardized(torch.ones(2, 3)), torch.zeros(2, 3))
    assert torch.equal(standardized(torch.tensor([[3.0], [4.0]])), torch.zeros(2, 1))


def test_tailor_uses_the_layers_inputs_and_returns_other_tensors(toy, batches):
    model = moved(toy())
    first, bias, second, last = tuned(model)
    x = torch.cat([inputs for inputs, _ in batches])
    hidden = torch.tanh(x @ first.weight.T + bias.weight).detach()
    expected = [tailored(t.weight.detach(), t.start(), inverse_factor(inputs.T @ inputs, 0.01), 0.3)
                for t, inputs in ((first, x), (second, hidden))]
    tailor(model, batches, run, share=0.3)
    for tensor, values in zip((first, second), expected):
        assert torch.allclose(tensor.weight, values, rtol=0, atol=1e-5)
    assert all(torch.equal(tensor.weight, tensor.start()) for tensor in (bias, last))
    assert not any(module._forward_pre_hooks for module in model.modules())
