"""The gated prefix: the formula, a start that changes nothing, what is saved of it, and where it must not matter."""
import copy
import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import peftkit
from peftkit.methods import load_adapter, trainable_count
from peftkit.methods.prefix import PrefixLayer

from .weights import stir, trained

pytestmark = [pytest.mark.filterwarnings("ignore:.*gradient_checkpointing"),
              pytest.mark.filterwarnings("ignore:.*requires_grad"),
              pytest.mark.filterwarnings("ignore:.*adapter_config")]
TOLERANCE = 1e-5  # of logits and context vectors of size 1 in float32
no_blip = pytest.mark.parametrize("case", ["llava", "idefics2", "qwen2_vl", "paligemma", "t5"], indirect=True)
MLP = {"reparametrization": 5}


def injected(base, **options):
    return peftkit.inject(copy.deepcopy(base), "prefix", tokens=3, **options).eval()


def by_hand(layer, x):
    """What the prefix adds to the attention of x (length, width), head by head."""
    prefix, attention = layer.gated_prefix_of["default"], layer.base_layer
    query, out = layer.paths["default"]
    heads = attention.get_submodule(query)(x).unflatten(-1, (len(prefix.gate), -1))  # (length, heads, head width)
    groups = prefix.tokens.shape[2]
    contexts = []
    for head, gate in enumerate(prefix.gate):
        keys, values = prefix.tokens[:, :, head * groups // len(prefix.gate)].unbind(1)  # (tokens, head width)
        scores = torch.exp(heads[:, head] @ keys.T / keys.shape[1] ** 0.5)
        contexts.append(torch.tanh(gate) * (scores / scores.sum(-1, keepdim=True)) @ values)
    context = torch.cat(contexts, dim=-1)
    return context @ attention.get_submodule(out).weight.T if out else context


@torch.no_grad()
def test_each_attention_adds_the_formula(case):
    model = stir(injected(case.base))
    layers, seen = [module for module in model.modules() if isinstance(module, PrefixLayer)], []
    for layer in layers:
        layer.register_forward_hook(lambda module, args, kwargs, output: seen.append(
            (module, args[0] if args else kwargs["hidden_states"], output[0])), with_kwargs=True)
        layer.base_layer.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    case.logits(model, case.inputs(6, 4))
    assert len(seen) == 2 * len(layers) == 2 * {"t5": 7}.get(case.name, 2)
    for without, (layer, x, output) in zip(seen[::2], seen[1::2]):
        expected = torch.stack([by_hand(layer, row) for row in x])
        assert (output - without - expected).abs().max() < TOLERANCE < expected.abs().max()
    groups = {layer.gated_prefix_of["default"].repeats for layer in layers}
    assert groups == {{"qwen2_vl": 2, "paligemma": 4}.get(case.name, 1)}  # query heads that share keys and values


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, MLP])
def test_a_new_prefix_changes_nothing(case, options):
    inputs = case.inputs(6, 4)
    assert torch.equal(case.logits(injected(case.base, **options), inputs), case.logits(case.base, inputs))


def test_the_gate_moves_first_and_the_tokens_follow(case):
    model, inputs = injected(case.base), case.inputs(6)
    for gates_moved in (False, True):
        model.zero_grad()
        case.loss(model, inputs).backward()
        assert all((p.grad.abs().max() > 0) == (gates_moved or name.endswith("gate"))
                   for name, p in trained(model).items())
        with torch.no_grad():
            for name, parameter in trained(model).items():
                parameter.sub_(parameter.grad)


@pytest.mark.parametrize("options", [{}, MLP])
def test_formula_and_modules_agree(case, options):
    model = injected(case.base, **options)
    count = sum(p.numel() for p in trained(model).values())
    assert count == trainable_count(case.base, "prefix", tokens=3, **options)


@torch.no_grad()
@no_blip  # which counts positions from the left, pads or not
def test_left_and_right_padding_agree(case):
    model, lengths = stir(injected(case.base)), (6, 3)
    found = {}
    for side in ("left", "right"):
        inputs = case.inputs(*lengths, side=side, positions=True)
        logits = case.logits(model, inputs)
        found[side] = logits if case.decodes else logits[inputs["attention_mask"].bool()]
    assert (found["left"] - found["right"]).abs().max() < TOLERANCE


@torch.no_grad()
def test_generation_with_a_cache_equals_whole_passes(case):
    model, inputs = stir(injected(case.base)), case.inputs(6, 6)
    (words, logits), (again, whole) = case.generated(model, inputs, 5), case.decoded(model, inputs, 5)
    assert torch.equal(words, again) and (logits - whole).abs().max() < TOLERANCE


@no_blip  # whose embeddings cannot require the gradient that checkpointing asks for
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(case, when, reentrant):
    inputs, settings, base = case.inputs(6, 4), {"use_reentrant": reentrant}, copy.deepcopy(case.base)
    found = []
    for checkpointing in (False, True):
        if checkpointing and when == "before":
            base.gradient_checkpointing_enable(settings)
        model = stir(injected(base)).train()
        if checkpointing and when == "after":
            model.gradient_checkpointing_enable(settings)
            model.enable_input_require_grads()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        calls = []
        next(m for m in model.modules() if isinstance(m, PrefixLayer)).register_forward_hook(lambda *_: calls.append(1))
        loss = case.loss(model, inputs)
        loss.backward()
        assert len(calls) == 1 + checkpointing
        found.append((loss.detach(), [p.grad for p in trained(model).values()]))
    (loss, gradients), (again, recomputed) = found
    assert torch.allclose(loss, again, rtol=1e-6)
    assert all(torch.allclose(*pair, rtol=0, atol=1e-6) for pair in zip(gradients, recomputed, strict=True))


# ---- reparametrization -----------------------------------------------------------------------------------------------

@torch.no_grad()
def test_the_mlp_is_folded_away_in_the_file(case, tmp_path):
    model, inputs = stir(injected(case.base, **MLP)), case.inputs(6, 4)
    expected = case.logits(model, inputs)
    assert not torch.equal(expected, case.logits(case.base, inputs))
    model.save_pretrained(tmp_path / "made")
    injected(case.base).save_pretrained(tmp_path / "plain")
    made, plain = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("made", "plain"))
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in plain.items()}
    assert json.loads((tmp_path / "made" / "adapter_config.json").read_text())["reparametrization"] is None
    for load in (load_adapter, peft.PeftModel.from_pretrained):
        loaded = load(copy.deepcopy(case.base), tmp_path / "made").eval()
        assert torch.equal(case.logits(loaded, inputs), expected)
    assert any("default.mlp" in name for name in trained(model))  # the live model keeps it


def test_a_saved_prefix_loads_onto_a_live_mlp_and_trains_on(case, tmp_path):
    saved, inputs = stir(injected(case.base, **MLP)), case.inputs(6, 4)
    saved.save_pretrained(tmp_path)
    model = stir(injected(case.base, **MLP), seed=2)
    model.load_adapter(tmp_path, "default", is_trainable=True)
    assert not any("default.mlp" in name or name.endswith("seed") for name, _ in model.named_parameters())
    assert torch.equal(case.logits(model, inputs), case.logits(saved, inputs))
    case.loss(model, inputs).backward()
    assert all(p.grad.abs().max() > 0 for p in trained(model).values())
    assert any(name.endswith("tokens") for name in trained(model))


def test_the_mlp_trains(tiny_llava):
    model = stir(injected(tiny_llava.model, **MLP))
    model(input_ids=torch.arange(40, 46)[None]).logits.square().mean().backward()
    assert {name.split("default.")[1] for name in trained(model)} == {
        "gate", "seed", "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"}
    assert all(p.grad.abs().max() > 0 for p in trained(model).values())


# ---- the Trainer of transformers -------------------------------------------------------------------------------------

def run(model, folder, steps, resume=None):
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(40, 90, (8, 6), generator=torch.Generator())]
    settings = transformers.TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=2, save_steps=2, learning_rate=0.1, seed=0, use_cpu=True,
        lr_scheduler_type="constant", report_to=[], disable_tqdm=True)
    trainer = transformers.Trainer(model, settings, train_dataset=rows)
    trainer.train(resume_from_checkpoint=resume)
    return {name: p.detach().clone() for name, p in trained(trainer.model).items()}


def test_two_steps_and_two_more_are_four(tiny_llava, tmp_path):
    whole = run(injected(tiny_llava.model), tmp_path / "whole", 4)
    start = trained(injected(tiny_llava.model))
    run(injected(tiny_llava.model), tmp_path / "half", 2)
    resumed = run(injected(tiny_llava.model), tmp_path / "half", 4, resume=str(tmp_path / "half" / "checkpoint-2"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert all((whole[name] - start[name]).abs().max() > 0.1 for name in whole)
