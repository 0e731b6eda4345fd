"""SPIDER: the formulas by hand, what a step leaves behind, and what it costs."""
import copy
import dataclasses
import gc

import pytest
import torch

import peftkit
from peftkit import TrainConfig
from peftkit.errors import PeftkitError
from peftkit.methods import rule_of, trainable_count
from peftkit.methods.selective.rule import MaskRule
from peftkit.methods.selective.spider import importance, selection_mask
from peftkit.methods.selective.tuner import tuned
from peftkit.papers.zhou2024.shares import llava_7b
from peftkit.training.loop import train

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
ENTRIES = 400_000
CONFIG = TrainConfig(epochs=1, batch_size=4, learning_rate=1e-3, schedule="constant", warmup_ratio=0.0, progress=False)


def adamw(model, lr=1e-1):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)


def drawn(kind, seed):
    torch.manual_seed(seed)
    distributions = {"normal": torch.distributions.Normal(0.0, 1.0), "Laplace": torch.distributions.Laplace(0.0, 1.0),
                     "t3": torch.distributions.StudentT(3.0), "t2.1": torch.distributions.StudentT(2.1)}
    return distributions[kind].sample((ENTRIES,))


# ---- the formulas (facts, 1.1 and 1.3) -------------------------------------------------------------------------------

def test_a_mask_of_nine_entries_equals_the_one_computed_by_hand():
    start = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0], [7.0, -8.0, 9.0]])  # mean 5, std sqrt(60 / 8)
    accumulated = torch.tensor([[9.0, 8.0, -7.0], [6.0, 5.0, 4.0], [-3.0, 2.0, 1.0]])  # the sizes 10 - |W0|: G = 1 - I
    before = torch.tensor([[0.1883766, 0.2505943, 0.3251296], [0.4097139, 0.5, 0.5902861],
                           [0.6748704, 0.7494057, 0.8116234]])
    assert torch.allclose(importance(start), before, rtol=0, atol=1e-6)
    assert torch.allclose(importance(accumulated), 1 - before, rtol=0, atol=1e-6)
    # I < G in the first four, whose r = G / (I + G) = G has the mean 0.7065464; at 5 both are a half: not selected
    expected = torch.tensor([[1.0, 1.0, 0.9551678], [0.8354527, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(selection_mask(start, accumulated), expected, rtol=0, atol=1e-6)
    assert torch.equal(selection_mask(start, accumulated, weighted=False), (expected > 0).float())


def test_importance_is_zero_for_zeros_and_a_half_for_equal_entries():
    assert torch.equal(importance(torch.zeros(3, 4)), torch.zeros(3, 4))
    assert torch.equal(importance(torch.tensor([2.0, -2.0, 2.0])), torch.full((3,), 0.5))
    assert torch.equal(importance(torch.tensor([-7.0])), torch.tensor([0.5]))


@pytest.mark.parametrize("value", [0.1, 0.7, 1.1])
@pytest.mark.parametrize("entries", [1, 10, 96, 4096])
def test_equal_entries_are_equal_in_spite_of_rounding(value, entries):
    assert torch.equal(importance(torch.full((entries,), value)), torch.full((entries,), 0.5))


@pytest.mark.parametrize("kind", ["weighted", "binary"])
def test_the_rule_has_the_mask_that_was_asked_for(tiny_llava, kind):
    rule = rule_of(peftkit.inject(copy.deepcopy(tiny_llava.model), "spider", layers=1, mask=kind))
    for number, tensor in enumerate(rule.tensors):
        rule.sums[tensor.name] = torch.randn(tensor.weight.shape, generator=torch.Generator().manual_seed(number))
        expected = selection_mask(tensor.start(), rule.sums[tensor.name], kind == "weighted")
        assert torch.equal(rule.mask(tensor), expected) and expected.any()


def test_an_entry_far_below_all_others_does_no_harm():
    start, accumulated = torch.ones(ENTRIES), torch.ones(ENTRIES)
    start[0] = accumulated[0] = 0.0  # z is -632: both importances are zero, and so is their sum
    accumulated[1] = 2.0
    assert selection_mask(start, accumulated)[:3].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("change", [lambda x: 2.0 ** 20 * x, lambda x: 2.0 ** -20 * x, lambda x: -x,
                                    lambda x: x * torch.where(torch.arange(x.numel()) % 2 == 0, 1.0, -1.0)])
def test_importance_ignores_scale_and_signs(change):
    values = drawn("normal", 0)
    assert torch.allclose(importance(change(values)), importance(values), rtol=0, atol=1e-6)


@pytest.mark.parametrize("weights, gradients, selected, mean, full, inside, least", [
    ("normal", "normal", 0.500, 0.617, 0.229, 0.946, 0.811),
    ("normal", "Laplace", 0.503, 0.610, 0.222, 0.948, 0.819),
    ("normal", "t3", 0.519, 0.606, 0.232, 0.952, 0.825),
    ("normal", "t2.1", 0.542, 0.603, 0.259, 0.956, 0.830),
    ("Laplace", "Laplace", 0.500, 0.600, 0.223, 0.950, 0.834),
])
def test_random_tensors_are_selected_as_in_the_table(weights, gradients, selected, mean, full, inside, least):
    start, accumulated = drawn(weights, 0), drawn(gradients, 1)
    mask = selection_mask(start, accumulated)
    chosen = mask > 0
    near = lambda value: pytest.approx(value, abs=0.03 if gradients == "t2.1" else 0.005)  # its variance hardly exists
    assert chosen.float().mean().item() == near(selected)
    assert (mask == 1).float().mean().item() == near(full)
    assert mask[chosen].mean().item() == near(inside)
    assert mask[chosen].min().item() == near(least)
    before, now = importance(start), importance(accumulated)
    assert (now / (before + now))[chosen].mean().item() == near(mean)
    assert torch.equal(chosen, before < now)


# ---- a step ----------------------------------------------------------------------------------------------------------

def test_after_a_step_every_entry_lies_between_its_start_and_the_optimizers_result(toy, batches, step):
    model, plain = toy("spider"), toy("l2-sp", strength=0.0)
    rule = rule_of(model)
    step(model, rule, adamw(model, lr=1e-1), batches[0])
    step(plain, rule_of(plain), adamw(plain, lr=1e-1), batches[0])
    for ours, moved in zip(tuned(model), tuned(plain)):
        mask = rule.mask(ours)
        assert 0 < (mask > 0).sum() < mask.numel() and (mask == 1).any()
        assert torch.equal(ours.weight[mask == 0], ours.start()[mask == 0])
        assert torch.equal(ours.weight[mask == 1], moved.weight[mask == 1])
        between = ours.start() * (1 - mask) + moved.weight * mask
        assert torch.allclose(ours.weight, between, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mask", [0.0, 1.0])
def test_no_entry_is_rounded_where_the_mask_is_zero_or_one(toy, mask):
    rule = rule_of(toy("spider"))
    rule.mask = lambda tensor: torch.full_like(tensor.weight, mask)
    for tensor in rule.tensors:
        tensor.weight.data *= 0.0123  # far nearer to zero than to W0, where W0 + (W - W0) is not W
    expected = [tensor.weight.detach().clone() if mask else tensor.start().clone() for tensor in rule.tensors]
    rule.after_step()
    assert all(torch.equal(tensor.weight, values) for tensor, values in zip(rule.tensors, expected))


@pytest.mark.parametrize("share, ceiling", [(0.9, 9.0), (0.8, 4.0), (1.0, None), (0.0, 0.0)])
def test_a_constant_mask_holds_an_entry_at_a_fixed_distance(toy, monkeypatch, share, ceiling):
    model = toy("spider")
    rule, push = rule_of(model), 1e-3
    monkeypatch.setattr(rule, "mask", lambda tensor: torch.full_like(tensor.weight, share))
    for _ in range(200):
        for tensor in rule.tensors:
            tensor.weight.data += push
        rule.after_step()
    distance = (rule.tensors[0].weight - rule.tensors[0].start()) / push
    assert torch.allclose(distance, torch.full_like(distance, 200.0 if ceiling is None else ceiling), rtol=1e-3, atol=0)


def test_an_entry_that_is_selected_again_starts_from_the_pretrained_value(toy):
    rule = rule_of(toy("spider"))
    for mask in (1.0, 0.0, 1.0):
        for tensor in rule.tensors:
            tensor.weight.data += 0.25
        rule.mask = lambda tensor: torch.full_like(tensor.weight, mask)
        rule.after_step()
    assert all(torch.equal(tensor.weight, tensor.start() + 0.25) for tensor in rule.tensors)


def test_opposite_gradients_cancel(toy):
    model = toy("spider")
    rule = rule_of(model)
    for sign in (1.0, -1.0):
        for tensor in rule.tensors:
            tensor.weight.grad = torch.full_like(tensor.weight, sign)
        rule.after_backward()
        assert all(torch.equal(rule.accumulated(t), torch.full_like(t.weight, (1 + sign) / 2)) for t in rule.tensors)
        rule.after_step()
        assert all(tensor.weight.grad is None for tensor in rule.tensors)
    assert all(torch.equal(tensor.weight, tensor.start()) for tensor in rule.tensors)  # A = 0 selects nothing


def test_the_optimizers_moments_see_the_unmasked_gradients(toy, batches, step):
    model = toy("spider")
    optimizer, rule = adamw(model), rule_of(model)
    gradients = []
    fold = rule.after_backward
    rule.after_backward = lambda: (gradients.append([t.weight.grad.clone() for t in rule.tensors]), fold())
    for batch in batches:
        step(model, rule, optimizer, batch)
    free = [torch.nn.Parameter(torch.zeros_like(tensor.weight)) for tensor in rule.tensors]
    other = torch.optim.AdamW(free, weight_decay=0.0)
    for given in gradients:
        for parameter, gradient in zip(free, given):
            parameter.grad = gradient
        other.step()
    for tensor, parameter in zip(rule.tensors, free):
        for name in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[tensor.weight][name], other.state[parameter][name])


def test_a_step_without_gradients_is_refused(toy):
    with pytest.raises(PeftkitError, match="no selected weight has a gradient.*between backward and zero_grad"):
        rule_of(toy("spider")).after_backward()


# ---- in a training run -----------------------------------------------------------------------------------------------

def masks_of(rule):
    return [rule.mask(tensor) for tensor in rule.tensors]


def some(rows, chosen):
    return dataclasses.replace(rows, **{name: [getattr(rows, name)[row] for row in chosen] for name in (
        "prompts", "answers", "references", "question_ids", "picture_ids")},
        pictures={name: value[chosen] for name, value in rows.pictures.items()})


def run(tiny_llava, rows, monkeypatch, checkpointing=False, look=masks_of, **settings):
    """What `look` sees of the rule after each step of a run in peftkit.train, and the weights at its end."""
    seen, after = [], MaskRule.after_step
    model = peftkit.inject(copy.deepcopy(tiny_llava.model), "spider", layers=1, connector="tuned")
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    with monkeypatch.context() as watched:
        watched.setattr(MaskRule, "after_step", lambda rule: (after(rule), seen.append(look(rule))))
        result = train(model, tiny_llava.processor, dataclasses.replace(rows), dataclasses.replace(CONFIG, **settings))
    return seen, [tensor.weight.detach().clone() for tensor in tuned(model)], result.steps


def test_a_rule_sees_gradients_before_they_are_clipped(tiny_llava, rows, monkeypatch):
    free, _, _ = run(tiny_llava, rows, monkeypatch, max_grad_norm=1e9)
    clipped, weights, _ = run(tiny_llava, rows, monkeypatch, max_grad_norm=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(free[0], clipped[0]))
    assert any((mask > 0).any() for mask in clipped[0])


def test_micro_batches_give_the_masks_of_the_whole_batch(tiny_llava, rows, monkeypatch):
    same = some(rows, [0] * 4)  # one row four times, so that the mean over batches is the mean over the batch
    whole, ours, steps = run(tiny_llava, same, monkeypatch, epochs=3, batch_size=4)
    parts, plain, again = run(tiny_llava, same, monkeypatch, epochs=3, batch_size=2, accumulation=2)
    assert steps == again == len(whole) == len(parts) == 3
    share = [(a > 0).eq(b > 0).float().mean() for a, b in zip(sum(whole, []), sum(parts, []))]
    assert min(share) > 0.99  # rounding may move an entry over the line
    assert torch.stack([(a - b).abs().mean() for a, b in zip(ours, plain)]).max() < 1e-5


@pytest.mark.parametrize("settings", [{"batch_size": 2, "accumulation": 2}, {"max_grad_norm": 1e-9}])
def test_the_sum_of_gradients_ignores_micro_batches_and_clipping(tiny_llava, rows, monkeypatch, settings):
    order = sorted(range(len(rows.answers)), key=lambda row: len(rows.answers[row]))
    chosen = [*order[:2], *order[-2:]]  # answers of unequal length: the mean over batches is not that of the batch
    sums, others = (run(tiny_llava, some(rows, chosen), monkeypatch, look=MaskRule.state_dict, **changed)[0][0]
                    for changed in ({}, settings))
    for name, total in sums.items():
        torch.testing.assert_close(others[name], total, rtol=0, atol=1e-5 * total.abs().max().item())


def test_gradient_checkpointing_changes_nothing(tiny_llava, rows, monkeypatch):
    masks, weights, _ = run(tiny_llava, rows, monkeypatch, cache_features=False)
    again, other, _ = run(tiny_llava, rows, monkeypatch, cache_features=False, checkpointing=True)
    assert all(torch.equal(a, b) for a, b in zip(sum(masks, []), sum(again, [])))
    assert all(torch.equal(a, b) for a, b in zip(weights, other))


# ---- cost ------------------------------------------------------------------------------------------------------------

def live_storages():
    """Address -> bytes of every storage that some tensor holds."""
    gc.collect()
    held = [t.untyped_storage() for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in held}


def test_spider_holds_the_start_and_the_sum_besides_the_trained_weights(toy, batches, step):
    before = live_storages()
    model = toy("spider")
    optimizer, rule = adamw(model), rule_of(model)
    for batch in batches:
        step(model, rule, optimizer, batch)
    held = sum(size for place, size in live_storages().items() if place not in before)
    of_optimizer = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    trained = sum(tensor.weight.nbytes for tensor in rule.tensors)
    assert held - of_optimizer == 3 * trained  # the weights, W0 and A


def test_the_counted_parameters_of_llava_7b_are_those_of_the_paper():
    model = llava_7b()
    with torch.device("meta"):
        injected = peftkit.inject(model, "spider", layers=2, connector="tuned")
    trained = [p for p in injected.parameters() if p.requires_grad]
    assert all(p.is_meta for p in injected.parameters())
    assert (sum(p.numel() for p in trained), len(trained), len(tuned(injected))) == (425_746_432, 22, 22)
    assert trainable_count(llava_7b(), "spider", layers=2) == 404_766_720
