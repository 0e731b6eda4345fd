"""Which parameters a part holds: norms, biases, regions, blocks, tied weights; and float32 copies on other bases."""
import copy

import pytest
import torch
from torch import nn

import peftkit
from peftkit.errors import PeftkitError
from peftkit.methods import rule_of, trainable_count
from peftkit.methods.selective.tuner import tuned
from peftkit.models.regions import architecture, region_of

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:Input and output embeddings")
BASES = ("tiny_llava", "tiny_idefics2", "qwen2_vl", "paligemma", "t5", "blip")
BIASED = ("qwen2_vl", "blip")


@pytest.fixture(params=BASES)
def named(request):
    """(name, model) of every architecture."""
    return request.param, request.getfixturevalue(request.param).model


def injected(model, method, **options):
    return peftkit.inject(copy.deepcopy(model), method, **options)


def names(model):
    return {tensor.name for tensor in tuned(model)}


def language(model):
    arch = architecture(model)
    return {name: p for name, p in model.named_parameters() if region_of(arch, name) == "language"}


# ---- which parameters ------------------------------------------------------------------------------------------------

def test_norms_are_the_modules_whose_class_is_a_norm(named):
    _, model = named
    norms = [name for name, module in model.named_modules() if "Norm" in type(module).__name__]
    expected = {name for name in language(model) if name.rpartition(".")[0] in norms}
    assert names(injected(model, "layernorm")) == expected != set()


def test_biases_are_those_of_the_model_or_new_ones_on_its_linear_layers(named):
    name, model = named
    selected = tuned(injected(model, "bias"))
    own = {name for name in language(model) if name.endswith(".bias")}
    if name in BIASED:
        assert {tensor.name for tensor in selected} == own != set()
        return
    arch = architecture(model)
    linear = {f"{path}.bias": module.out_features for path, module in model.named_modules()
              if isinstance(module, nn.Linear) and region_of(arch, path) == "language"}
    assert own == set() and {t.name: t.weight.numel() for t in selected} == linear
    assert all(torch.equal(tensor.weight, torch.zeros_like(tensor.weight)) for tensor in selected)


def test_full_holds_everything_and_language_one_region(named):
    _, model = named
    everything = {name for name, _ in model.named_parameters()}
    assert names(injected(model, "full")) == everything
    assert names(injected(model, "language")) == set(language(model))
    assert trainable_count(model, "full") == sum(p.numel() for p in model.parameters())


def test_the_last_layers_are_the_last_blocks_with_all_their_tensors(tiny_llava):
    selected = names(injected(tiny_llava.model, "language", layers=1))
    assert selected == {name for name in language(tiny_llava.model) if ".layers.1." in name} and len(selected) == 9
    both = names(injected(tiny_llava.model, "language", layers=1, connector="tuned"))
    assert {name for name in both - selected} == {
        f"model.multi_modal_projector.linear_{n}.{leaf}" for n in (1, 2) for leaf in ("weight", "bias")}


@pytest.mark.parametrize("layers, message", [
    (3, "layers is 3; accepted: 1 to 2"), (0, "layers is 0; accepted: a whole number above 0"), (1.5, "layers is 1.5")])
@pytest.mark.parametrize("method", ["language", "layernorm", "bias", "spider", "half", "l2-sp", "random-mask"])
def test_more_layers_than_there_are_are_refused(tiny_llava, method, layers, message):
    with pytest.raises(PeftkitError, match=message):
        injected(tiny_llava.model, method, layers=layers)


def test_a_model_without_a_selective_method_is_refused(tiny_llava):
    with pytest.raises(PeftkitError, match="holds no selective method; accepted: one injected as full, language"):
        tuned(injected(tiny_llava.model, "lora"))


# ---- added biases ----------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_added_biases_are_added_and_refuse_to_merge(tiny_llava):
    model = injected(tiny_llava.model, "bias", connector="tuned").eval()
    tensor = next(t for t in tuned(model) if "o_proj" in t.name)
    x = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    before = tensor.layer(x)
    assert torch.equal(before, tensor.layer.base_layer(x))
    tensor.weight.copy_(torch.arange(128.0))
    assert torch.allclose(tensor.layer(x), before + torch.arange(128.0), rtol=0, atol=1e-4)
    whole = {name: p.clone() for name, p in model.named_parameters()}
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="an added bias cannot be merged: the base has none"):
            merge()
    assert all(torch.equal(p, whole[name]) for name, p in model.named_parameters())  # none is


@torch.no_grad()
def test_biases_that_the_base_has_are_merged(qwen2_vl):
    model = injected(qwen2_vl.model, "bias").eval()
    for tensor in tuned(model):
        tensor.weight.add_(0.1)
    expected = model(**qwen2_vl.inputs).logits
    assert torch.equal(model.merge_and_unload()(**qwen2_vl.inputs).logits, expected)


# ---- tied weights ----------------------------------------------------------------------------------------------------

def test_a_tied_pair_has_one_copy(paligemma):
    model = injected(paligemma.model, "full").eval()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert embedding.copies("default")["weight"] is head.copies("default")["weight"]
    model(**paligemma.inputs, labels=paligemma.inputs["input_ids"]).loss.backward()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    assert len(optimizer.param_groups[0]["params"]) == len(tuned(model)) == len(list(paligemma.model.parameters()))
    optimizer.step()
    read, written = embedding(torch.arange(5)) / embedding.scalar_embed_scale, head.copies("default")["weight"][:5]
    assert torch.allclose(read, written, rtol=0, atol=1e-6)
    assert not torch.allclose(read, paligemma.model.lm_head.weight[:5], rtol=0, atol=5e-3)


@torch.no_grad()
def test_a_head_is_trained_apart_from_the_embeddings_that_it_shares(paligemma, tmp_path):
    assert paligemma.model.lm_head.weight is paligemma.model.get_input_embeddings().weight
    model = injected(paligemma.model, "head").eval()
    inputs = {**paligemma.inputs, "output_hidden_states": True}
    before = model(**inputs)
    tuned(model)[0].weight.mul_(2)
    after = model(**inputs)
    assert torch.equal(after.logits, 2 * before.logits)
    assert all(torch.equal(a, b) for a, b in zip(after.hidden_states, before.hidden_states))
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path).eval()
    assert torch.equal(again(**paligemma.inputs).logits, after.logits)  # the pair is no longer tied
    assert not torch.equal(again.lm_head.weight, again.get_input_embeddings().weight)


# ---- precision -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", ["language", "spider", "random-mask"])
def test_copies_are_float32_on_a_bfloat16_base_and_move_at_a_small_rate(tiny_llava, method):
    base = copy.deepcopy(tiny_llava.model).to(torch.bfloat16)
    model = injected(base, method, layers=1, connector="tuned")
    rule, selected = rule_of(model), tuned(model)
    assert {tensor.weight.dtype for tensor in selected} == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if "selective_weights" not in name} == {torch.bfloat16}
    optimizer = torch.optim.AdamW([tensor.weight for tensor in selected], lr=2e-5, weight_decay=0.0)
    ids = torch.tensor([[1, *[tiny_llava.model.config.image_token_id] * 9, 50, 51, 52]])
    for _ in range(3):
        output = model(input_ids=ids, pixel_values=torch.ones(1, 3, 48, 48), labels=ids.where(ids > 9, -100))
        assert output.logits.dtype == torch.bfloat16
        output.loss.backward()
        assert {tensor.weight.grad.dtype for tensor in selected} == {torch.float32}
        if rule:
            rule.after_backward()
        optimizer.step()
        if rule:
            rule.after_step()
        optimizer.zero_grad()
    for tensor in selected:
        moved = (tensor.weight - tensor.start()).abs()
        assert 1.5e-5 < moved.max() < 7e-5  # up to three steps of 2e-5
        assert torch.equal(tensor.start().to(torch.bfloat16).float(), tensor.start())
