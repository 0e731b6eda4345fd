"""Side tuning: the ladder's formula, and a base that no gradient enters."""
import copy
from functools import partial

import pytest
import torch

import peftkit
from peftkit.errors import PeftkitError
from peftkit.methods import trainable_count
from peftkit.methods.side import SideLayer

from .weights import stir, trained

pytestmark = [pytest.mark.filterwarnings("ignore:.*gradient_checkpointing"),
              pytest.mark.filterwarnings("ignore:.*requires_grad")]
TOLERANCE = 1e-5  # of hidden states of size 1 in float32
stir = partial(stir, scale=0.3)


def injected(base, **options):
    return peftkit.inject(copy.deepcopy(base), "side", bottleneck=8, **options).eval()


def side_of(model):
    (layer,) = (module for module in model.modules() if isinstance(module, SideLayer))
    return layer


def normed(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def passing(case, model, inputs, module):
    """What goes through a module: its output and its keyword arguments."""
    seen = []
    watching = module.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((output, kwargs)), with_kwargs=True)
    case.logits(model, inputs)
    watching.remove()
    return seen[0]


@torch.no_grad()
def test_the_ladder_follows_the_formula(case):
    model, inputs = stir(injected(case.base)), case.inputs(6, 4)
    layer = side_of(model)
    hidden = passing(case, model, inputs, layer.base_layer)[0].hidden_states
    ladder, output = layer.ladder_side["default"], passing(case, model, inputs, layer)[0]
    assert len(hidden) == len(ladder.down) == 3
    side = normed(hidden[0]) @ ladder.down[0].weight.T
    for number in (1, 2):
        open_share = 1 / (1 + torch.exp(-ladder.gate[number - 1]))
        rung = normed(hidden[number]) @ ladder.down[number].weight.T
        mix = open_share * side + (1 - open_share) * rung
        inner, outer = ladder.inner[number - 1], ladder.outer[number - 1]
        side = mix + torch.clamp(mix @ inner.weight.T, min=0) @ outer.weight.T
    change = side @ ladder.up.weight.T
    assert (output.last_hidden_state - hidden[-1] - change).abs().max() < TOLERANCE < change.abs().max()


@torch.no_grad()
def test_a_new_ladder_changes_nothing(case):
    inputs = case.inputs(6, 4)
    assert torch.equal(case.logits(injected(case.base), inputs), case.logits(case.base, inputs))


def test_the_base_runs_without_a_graph_and_gets_no_gradient(case):
    model, inputs = stir(injected(case.base)).train(), case.inputs(6, 4)
    layer, seen = side_of(model), []
    for module in layer.base_layer.modules():
        if not isinstance(module, torch.nn.Embedding):  # which the model around it calls
            module.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    layer.base_layer.register_forward_hook(lambda module, args, output: seen.append(
        any(state.requires_grad for state in output.hidden_states)))
    case.loss(model, inputs).backward()
    assert len(seen) > 10 and not any(seen)
    assert all((p.grad is not None and bool(p.grad.any())) == p.requires_grad for p in model.parameters())
    assert all("ladder_side" in name for name in trained(model))


def saved_for_backward(case, model, inputs):
    """Bytes of what a forward pass keeps for the backward pass, parameters not counted."""
    parameters, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = case.loss(model, inputs)
    return sum(kept.values()), loss  # the graph lives as long as the loss


def test_less_is_kept_for_the_backward_pass_than_under_lora(case):
    inputs = case.inputs(6, 6)
    lora = peftkit.inject(copy.deepcopy(case.base), "lora", rank=4)
    side, _ = saved_for_backward(case, injected(case.base).train(), inputs)
    assert side < 0.6 * saved_for_backward(case, lora.train(), inputs)[0]


@pytest.mark.parametrize("case", ["llava", "idefics2", "qwen2_vl", "paligemma", "t5"], indirect=True)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(case, reentrant):
    inputs, found = case.inputs(6, 4), []
    for checkpointing in (False, True):
        model = stir(injected(case.base))
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        case.loss(model.train(), inputs).backward()
        found.append([p.grad for p in trained(model).values()])
    assert all(torch.allclose(*pair, rtol=1e-5, atol=1e-6) for pair in zip(*found, strict=True))


@torch.no_grad()
def test_generation_with_a_cache_equals_whole_passes(case):
    model, inputs = stir(injected(case.base)), case.inputs(6, 6)
    (words, logits), (again, whole) = case.generated(model, inputs, 5), case.decoded(model, inputs, 5)
    assert torch.equal(words, again) and (logits - whole).abs().max() < TOLERANCE * whole.abs().max()
    assert (logits - case.generated(copy.deepcopy(case.base), inputs, 5)[1]).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("asked", ["call", "config", "not"])
def test_hidden_states_come_when_they_are_asked_for(case, asked):
    model, inputs = stir(injected(case.base)), case.inputs(6)
    layer = side_of(model)
    if asked == "config":
        layer.base_layer.config.output_hidden_states = True
    output, _ = passing(case, model, inputs | ({"output_hidden_states": True} if asked == "call" else {}), layer)
    assert ("hidden_states" in output) == (asked != "not")
    if asked != "not":
        assert len(output.hidden_states) == 3 and torch.equal(output.hidden_states[-1], output.last_hidden_state)


def test_formula_and_modules_agree(case):
    model = injected(case.base)
    assert sum(p.numel() for p in trained(model).values()) == trainable_count(case.base, "side", bottleneck=8)


@pytest.mark.parametrize("options, reason", [
    ({"connector": "tuned"}, "side cannot be combined with connector='tuned': gradients never enter its base"),
    ({"bottleneck": 33}, "bottleneck is 33; accepted: up to 32")])
def test_what_cannot_work_is_refused(paligemma, options, reason):
    with pytest.raises(PeftkitError, match=reason):
        peftkit.inject(paligemma.model, "side", **options)
