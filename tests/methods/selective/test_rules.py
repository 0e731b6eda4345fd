"""The rules: what each does to gradients and weights, that a run can be resumed, and transformers' Trainer."""
import copy

import pytest
import torch
import transformers

import peftkit
from peftkit.errors import PeftkitError
from peftkit.methods import load_adapter, rule_of
from peftkit.methods.selective.masks import largest
from peftkit.methods.selective.rule import RULES
from peftkit.methods.selective.tuner import tuned
from peftkit.training.forward import answer_loss

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
OPTIONS = {"spider": {}, "random-mask": {"share": 0.3}, "magnitude-mask": {"share": 0.3},
           "gradient-mask": {"share": 0.3}, "l2-sp": {"strength": 0.5}, "half": {"steps_a_round": 2}}


def adamw(model, lr=1e-2):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)


def moved(tensor):
    return tensor.weight != tensor.start()


# ---- masks -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("share", [0.5, 0.3])
@pytest.mark.parametrize("rule", ["random-mask", "magnitude-mask", "gradient-mask"])
def test_exactly_the_share_of_each_tensor_trains(toy, batches, step, rule, share):
    model = toy(rule, share=share)
    optimizer, running = adamw(model), rule_of(model)
    for batch in batches:
        step(model, running, optimizer, batch)
    for tensor in running.tensors:
        assert running.mask(tensor).sum() == moved(tensor).sum() == round(share * tensor.weight.numel())
        assert torch.equal(moved(tensor), running.mask(tensor))
    assert {tensor.weight.numel() for tensor in running.tensors} == {35, 5, 15, 3}


def test_the_magnitude_mask_trains_the_smallest_entries(toy):
    rule = rule_of(toy("magnitude-mask", share=0.5))
    for tensor in rule.tensors:
        mask, sizes = rule.mask(tensor), tensor.start().abs()
        assert sizes[mask].max() < sizes[~mask].min()


def test_the_random_mask_depends_on_its_seed_and_the_tensors_name(toy):
    model = toy("random-mask", share=0.5)
    first, again, other = (torch.cat([rule.mask(tensor).flatten() for tensor in rule.tensors])
                           for rule in (rule_of(model, 1), rule_of(model, 1), rule_of(model, 2)))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_gradient_mask_trains_the_entries_with_the_largest_sum(toy, batches, step):
    model = toy("gradient-mask", share=0.4)
    optimizer, rule = adamw(model), rule_of(model)
    sums = [torch.zeros_like(tensor.weight) for tensor in rule.tensors]
    fold = rule.after_backward
    rule.after_backward = lambda: ([total.add_(t.weight.grad) for total, t in zip(sums, rule.tensors)], fold())
    for batch in batches:
        step(model, rule, optimizer, batch)
        for total, tensor in zip(sums, rule.tensors):
            sizes, mask = total.detach().abs(), moved(tensor)
            assert mask.sum() == round(0.4 * mask.numel()) and sizes[mask].min() > sizes[~mask].max()


def test_largest_takes_the_highest_values_not_the_largest_sizes():
    assert largest(torch.tensor([[1.0, -5.0], [3.0, 2.0]]), 0.5).tolist() == [[False, False], [True, True]]


# ---- L2-SP -----------------------------------------------------------------------------------------------------------

def test_the_penaltys_gradient_is_that_of_autograd(toy, batches):
    model = toy("l2-sp", strength=0.3)
    rule, (inputs, targets) = rule_of(model), batches[0]
    with torch.no_grad():
        for tensor in rule.tensors:
            tensor.weight.add_(torch.randn(tensor.weight.shape, generator=torch.Generator().manual_seed(0)))
    loss = torch.nn.functional.mse_loss(model(inputs), targets)
    loss.backward(retain_graph=True)
    of_loss = [tensor.weight.grad.clone() for tensor in rule.tensors]
    rule.after_backward()
    penalty = sum(0.15 * (tensor.weight - tensor.start()).square().sum() for tensor in rule.tensors)
    expected = torch.autograd.grad(loss + penalty, [tensor.weight for tensor in rule.tensors])
    for tensor, alone, both in zip(rule.tensors, of_loss, expected):
        assert torch.allclose(tensor.weight.grad, both, rtol=0, atol=1e-6)
        assert torch.allclose(tensor.weight.grad, alone + 0.3 * (tensor.weight - tensor.start()), rtol=0, atol=1e-6)


# ---- half fine-tuning ------------------------------------------------------------------------------------------------

def test_half_of_each_group_is_frozen_and_keeps_what_it_has(tiny_llava, rows):
    model = peftkit.inject(copy.deepcopy(tiny_llava.model), "half", layers=1, steps_a_round=1)
    optimizer, rule = adamw(model), rule_of(model)
    rounds = []
    for _ in range(6):
        before = {t.name: t.weight.detach().clone() for t in rule.tensors}
        answer_loss(model, rows.training_batch([0, 1])).backward()
        frozen = rule.frozen()
        rule.after_backward()
        optimizer.step()
        rule.after_step()
        optimizer.zero_grad()
        assert frozen == {t.name for t in rule.tensors if torch.equal(t.weight, before[t.name])}
        rounds.append(frozen)
    for frozen in rounds:
        assert sum("self_attn" in name for name in frozen) == 2  # of 4
        assert sum("mlp" in name for name in frozen) == 1  # of 3
        assert sum("layernorm" in name for name in frozen) == 1 and len(frozen) == 4  # of 2
    assert len(set(map(frozenset, rounds))) > 2
    assert set().union(*rounds) != rounds[0]


def test_a_round_lasts_its_steps(toy):
    rule = rule_of(toy("half", steps_a_round=2))
    rounds = [(rule.frozen(), rule.after_step())[0] for _ in range(12)]
    assert rounds[0::2] == rounds[1::2] and len(set(map(frozenset, rounds))) > 1
    whole = rule_of(toy("half"))
    assert len({frozenset((whole.frozen(), whole.after_step())[0]) for _ in range(12)}) == 1


# ---- all rules -------------------------------------------------------------------------------------------------------

def test_every_rule_is_tested():
    assert set(OPTIONS) == set(RULES)


@pytest.mark.parametrize("rule", OPTIONS)
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(tiny_llava, rows, tmp_path, rule):
    def steps(model, optimizer, running, numbers):
        for number in numbers:
            answer_loss(model, rows.training_batch([number, number + 1])).backward()
            running.after_backward()
            optimizer.step()
            running.after_step()
            optimizer.zero_grad()

    base = lambda: copy.deepcopy(tiny_llava.model)
    model = peftkit.inject(base(), rule, layers=1, connector="tuned", **OPTIONS[rule])
    optimizer, running = adamw(model), rule_of(model)
    steps(model, optimizer, running, range(3))
    model.save_pretrained(tmp_path)
    states = copy.deepcopy((optimizer.state_dict(), running.state_dict()))
    steps(model, optimizer, running, range(3, 6))

    resumed = load_adapter(base(), tmp_path, trainable=True)
    optimizer, again = adamw(resumed), rule_of(resumed)
    optimizer.load_state_dict(states[0])
    again.load_state_dict(states[1])
    steps(resumed, optimizer, again, range(3, 6))
    assert all(torch.equal(a.weight, b.weight) and a.name == b.name for a, b in zip(tuned(model), tuned(resumed)))
    assert all(torch.equal(a, again.state_dict()[name]) for name, a in running.state_dict().items())


def test_a_method_without_a_rule_has_none_and_another_adapter_has_its_own(toy):
    assert rule_of(toy()) is None
    model = toy("random-mask", share=0.5)
    model.add_adapter("second", toy("l2-sp", strength=0.1).peft_config["default"])
    first, second = rule_of(model), rule_of(model, adapter_name="second")
    model.set_adapter("second")
    assert type(rule_of(model)) is RULES["l2-sp"]
    assert (type(first), type(second)) == (RULES["random-mask"], RULES["l2-sp"])
    assert not {id(t.weight) for t in first.tensors} & {id(t.weight) for t in second.tensors}


def test_trained_weights_that_were_cast_are_refused(toy):
    with pytest.raises(PeftkitError, match="trained in torch.bfloat16; accepted: torch.float32"):
        rule_of(toy("spider").bfloat16())


@pytest.mark.parametrize("method, options, message", [
    ("random-mask", {"share": 0}, "share is 0; accepted: above 0"), ("gradient-mask", {"share": 1.0}, "share is 1.0"),
    ("l2-sp", {"strength": 0}, "strength is 0"), ("half", {"steps_a_round": 0}, "steps_a_round is 0"),
    ("spider", {"mask": "hard"}, "unknown mask 'hard'.*weighted, binary"), ("spider", {"layers": 0}, "layers is 0"),
    ("spider", {"layers": 3}, "layers is 3; accepted: 1 to 2")])
def test_values_out_of_range_are_refused(tiny_llava, method, options, message):
    with pytest.raises(PeftkitError, match=message):
        peftkit.inject(copy.deepcopy(tiny_llava.model), method, **options)


# ---- in transformers' Trainer ----------------------------------------------------------------------------------------

class Trainer(transformers.Trainer):
    def compute_loss(self, model, inputs, **more):
        return answer_loss(model, inputs)


def trainer(model, rows, folder, **settings):
    arguments = transformers.TrainingArguments(
        folder, max_steps=3, per_device_train_batch_size=2, learning_rate=1e-3, lr_scheduler_type="constant",
        weight_decay=0.0, optim="adamw_torch", report_to=[], disable_tqdm=True, use_cpu=True, save_strategy="no",
        logging_strategy="no", remove_unused_columns=False, **settings)
    return Trainer(model, arguments, train_dataset=[0] * 6, callbacks=[rule_of(model)],
                   data_collator=rows.training_batch)


@pytest.mark.parametrize("rule", OPTIONS)
def test_a_trainer_with_the_rule_as_a_callback_equals_a_loop_by_hand(tiny_llava, rows, tmp_path, rule):
    model, hand = (peftkit.inject(copy.deepcopy(tiny_llava.model), rule, layers=1, **OPTIONS[rule]) for _ in range(2))
    trainer(model, rows, tmp_path, max_grad_norm=0.0).train()
    optimizer, running = adamw(hand.train(), 1e-3), rule_of(hand)
    for _ in range(3):
        answer_loss(hand, rows.training_batch([0, 0])).backward()
        running.after_backward()
        optimizer.step()
        running.after_step()
        optimizer.zero_grad()
    assert all(torch.equal(ours.weight, other.weight) for ours, other in zip(tuned(model), tuned(hand)))
    assert any(moved(tensor).any() for tensor in tuned(model))


@pytest.mark.parametrize("settings, message", [
    ({"max_grad_norm": 1.0}, "max_grad_norm is 1.0.*accepted: 0 "), ({"max_grad_norm": 0.0, "fp16": True}, "fp16")])
def test_a_trainer_that_changes_gradients_first_is_refused(tiny_llava, rows, tmp_path, settings, message):
    model = peftkit.inject(copy.deepcopy(tiny_llava.model), "spider", layers=1)
    ready = trainer(model, rows, tmp_path, max_grad_norm=0.0)
    for name, value in settings.items():
        setattr(ready.args, name, value)
    with pytest.raises(PeftkitError, match=message):
        ready.train()
