"""MultiWay-Adapter: what each module reads, who reads what, the paper's counts, and the ways to run a block."""
import copy
from functools import partial

import pytest
import torch
from torch.nn import functional as F

import peftkit
from peftkit.errors import PeftkitError
from peftkit.methods import trainable_count
from peftkit.methods.method import Dimensions
from peftkit.methods.multiway import FeedForward, MultiwayLayer

from .weights import stir, trained

pytestmark = [pytest.mark.filterwarnings("ignore:.*gradient_checkpointing"),
              pytest.mark.filterwarnings("ignore:.*requires_grad")]
TOLERANCE = 1e-5  # of hidden states and logits of size 1 in float32
stir = partial(stir, scale=0.1)
BASE, LARGE = (Dimensions(width, width, width, 4 * width, layers, layers) for width, layers in ((768, 12), (1024, 24)))
sighted = pytest.mark.parametrize("case", ["llava", "idefics2", "qwen2_vl", "paligemma"], indirect=True)


def injected(base, **options):
    return peftkit.inject(copy.deepcopy(base), "multiway", bottleneck=8, **options).eval()


def bottleneck(module, x, scale=1.0):
    return scale * (torch.relu(x @ module.down.weight.T + module.down.bias) @ module.up.weight.T + module.up.bias)


def feed_forward(module, x):
    inner = F.gelu(x @ module.fc1.weight.T + module.fc1.bias)
    normed = (inner - inner.mean(-1, keepdim=True)) / (inner.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    return (normed * module.norm.weight + module.norm.bias) @ module.fc2.weight.T + module.fc2.bias


@sighted
@torch.no_grad()
@pytest.mark.parametrize("enhancer", ["bottleneck", "ffn", "none"])
def test_a_block_follows_the_formula(case, enhancer):
    model, inputs = stir(injected(case.base, enhancer=enhancer, scale=3.0)), case.inputs(6, 4, side="left")
    seen = []
    layers = [module for module in model.modules() if isinstance(module, MultiwayLayer)]
    for layer in layers:
        layer.register_forward_hook(lambda module, args, kwargs, output: seen.append((module, args, kwargs, output)),
                                    with_kwargs=True)
    model(**inputs)
    assert len(seen) == len(layers) == 2
    images = (inputs["input_ids"] == case.base.config.image_token_id)[..., None]
    for layer, (x, *_), kwargs, output in seen:
        block = layer.base_layer
        attended, _ = block.self_attn(block.input_layernorm(x), **kwargs | {"past_key_values": None})
        h = x + attended
        text, image = (bottleneck(part["default"], h, 3.0) for part in (layer.multiway_text, layer.multiway_image))
        z = h + block.mlp(block.post_attention_layernorm(h)) + torch.where(images, image, text)
        if enhancer != "none":
            z = z + {"bottleneck": bottleneck, "ffn": feed_forward}[enhancer](layer.multiway_align["default"], z)
        assert (output - z).abs().max() < TOLERANCE
        assert (image - text).abs().max() > 0.1


@sighted
@torch.no_grad()
@pytest.mark.parametrize("part", ["image", "text", "align"])
def test_each_token_passes_its_own_extractor_and_all_pass_the_enhancer(case, part):
    model, inputs = injected(case.base), case.inputs(6, 6)
    first = next(module for module in model.modules() if isinstance(module, MultiwayLayer))
    getattr(first, f"multiway_{part}")["default"].up.bias.fill_(0.1)
    seen = []
    first.register_forward_hook(lambda module, args, output: seen.append(output))
    model(**inputs)
    with model.disable_adapter():
        model(**inputs)
    changed, images = (seen[0] != seen[1]).any(-1), inputs["input_ids"] == case.base.config.image_token_id
    assert torch.equal(changed, {"image": images, "text": ~images, "align": images | ~images}[part])


@sighted
@torch.no_grad()
@pytest.mark.parametrize("enhancer", ["bottleneck", "ffn", "none"])
def test_a_new_one_changes_nothing(case, enhancer):
    inputs = case.inputs(6, 6)
    model = injected(case.base, enhancer=enhancer)
    assert torch.equal(case.logits(model, inputs), case.logits(case.base, inputs))


@torch.no_grad()
def test_the_released_enhancer_starts_as_the_paper_says(tiny_llava):
    torch.manual_seed(0)
    module = FeedForward(768, "released")
    assert torch.tensor([module.fc1.weight.std(), module.fc2.weight.std()]) == pytest.approx(0.0108, abs=1e-4)
    for size in (0.1, 1.0, 10.0):  # facts 1.2: 0.586, 0.599, 0.599
        assert module(size * torch.randn(64, 768)).std() == pytest.approx(0.6, abs=0.02)
    drawn = injected(tiny_llava.model, enhancer="ffn", init="released")
    weights = [p for name, p in trained(drawn).items() if name.endswith(("fc1.weight", "fc2.weight"))]
    assert torch.cat([p.flatten() for p in weights]).std() == pytest.approx(0.0108, abs=1e-4)
    assert max(p.abs().max() for p in weights) <= 0.02


@pytest.mark.parametrize("size, m, extractors, shared", [
    (BASE, 64, 2_379_264, 1_189_632), (BASE, 96, 3_559_680, 1_779_840), (BASE, 128, 4_740_096, 2_370_048),
    (LARGE, 64, 6_343_680, 3_171_840), (LARGE, 96, 9_490_944, 4_745_472), (LARGE, 128, 12_638_208, 6_319_104)])
def test_the_counts_are_those_of_the_table(size, m, extractors, shared):
    released = {BASE: 56_742_912, LARGE: 201_646_080}[size]
    for enhancer, more in (("none", 0), ("bottleneck", shared), ("ffn", released)):
        assert trainable_count(size, "multiway", bottleneck=m, enhancer=enhancer) == extractors + more


@sighted
@pytest.mark.parametrize("enhancer", ["bottleneck", "ffn", "none"])
def test_formula_and_modules_agree(case, enhancer):
    model = injected(case.base, enhancer=enhancer)
    formula = trainable_count(case.base, "multiway", bottleneck=8, enhancer=enhancer)
    assert sum(p.numel() for p in trained(model).values()) == formula


def backward(case, model, inputs):
    """The loss and the gradients of a training step, dropout and all."""
    torch.manual_seed(0)
    model.train().zero_grad()
    loss = case.loss(model, inputs)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in trained(model).items()}


@sighted
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(case, when, reentrant):
    inputs, settings = case.inputs(6, 4), {"use_reentrant": reentrant}
    expected_loss, expected = backward(case, stir(injected(case.base, dropout=0.1)), inputs)
    base = copy.deepcopy(case.base)
    if when == "before":
        base.gradient_checkpointing_enable(settings)
    model = stir(peftkit.inject(base, "multiway", bottleneck=8, dropout=0.1))
    if when == "after":
        model.gradient_checkpointing_enable(settings)
        model.enable_input_require_grads()
    calls = []
    block = next(module for module in model.modules() if isinstance(module, MultiwayLayer)).base_layer
    block.mlp.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    loss, gradients = backward(case, model, inputs)
    assert len(calls) == 2  # the block ran again
    assert torch.equal(loss, expected_loss)
    assert all(torch.allclose(gradients[name], expected[name], rtol=0, atol=1e-6) for name in expected)
    assert all(gradient.abs().max() > 1e-5 for gradient in expected.values())


@pytest.mark.parametrize("case", ["llava"], indirect=True)
def test_two_passes_may_come_before_the_backward_pass(case):
    batches = case.inputs(6, 4), case.inputs(3, 5, 2, side="left")
    found = []
    for checkpointing in (False, True):
        model = stir(injected(case.base)).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        sum(case.loss(model, batch) for batch in batches).backward()
        found.append([p.grad for p in trained(model).values()])
    assert all(torch.allclose(*pair, rtol=0, atol=1e-6) for pair in zip(*found))


@sighted
@torch.no_grad()
def test_generation_with_a_cache_equals_whole_passes(case):
    model, inputs = stir(injected(case.base), scale=0.5), case.inputs(6, 6)
    (words, logits), (again, whole) = case.generated(model, inputs, 5), case.decoded(model, inputs, 5)
    assert torch.equal(words, again) and (logits - whole).abs().max() < TOLERANCE
    assert (logits - case.generated(copy.deepcopy(case.base), inputs, 5)[1]).abs().max() > 0.01


@sighted
@torch.no_grad()
def test_prepared_embeddings_alone_are_refused(case):
    model, ids = injected(case.base), case.inputs(6)["input_ids"]
    words = {"inputs_embeds": model.get_input_embeddings()(ids[:, -6:])}
    with pytest.raises(PeftkitError, match="multiway needs input_ids to tell image tokens from text"):
        model(**words)
    if case.name != "qwen2_vl":  # it asks for positions, too
        with model.disable_adapter():
            assert torch.equal(model(**words).logits, case.base(**words).logits)


@sighted
@torch.no_grad()
def test_a_copy_gets_its_own_ids(case):
    original = stir(injected(case.base))
    twin, inputs = copy.deepcopy(original), case.inputs(6, 6)
    expected = case.logits(original, inputs)
    original(**case.inputs(3))
    assert torch.equal(case.logits(twin, inputs), expected)


@sighted
@torch.no_grad()
def test_two_adapters_switch_and_unloading_leaves_the_base(case):
    model, inputs = stir(injected(case.base)), case.inputs(6, 6)
    first = case.logits(model, inputs)
    model.add_adapter("second", copy.deepcopy(model.peft_config["default"]))
    model.set_adapter("second")
    second = case.logits(stir(model, seed=2), inputs)
    model.set_adapter("default")
    assert torch.equal(case.logits(model, inputs), first) and (first - second).abs().max() > 1e-3
    with pytest.raises(ValueError, match="MultiwayLayer cannot be merged: its modules are not linear"):
        model.merge_and_unload()
    base = model.unload()
    assert torch.equal(case.logits(base, inputs), case.logits(case.base, inputs))
    assert not base._forward_pre_hooks and base.state_dict().keys() == case.base.state_dict().keys()
    assert base(inputs_embeds=base.get_input_embeddings()(inputs["input_ids"][:, -6:])).logits.shape[1] == 6


@pytest.mark.parametrize("kind, options, reason", [
    ("t5", {}, "it has one modality"), ("blip", {}, "normalize after adding the MLP's output"),
    ("paligemma", {"bottleneck": 33}, "bottleneck is 33; accepted: up to 32"),
    ("paligemma", {"init": "released"}, "unknown init 'released'; accepted: zero"),
    ("paligemma", {"enhancer": "full"}, "unknown enhancer 'full'")])
def test_what_cannot_work_is_refused(request, kind, options, reason):
    with pytest.raises(PeftkitError, match=reason):
        peftkit.inject(request.getfixturevalue(kind).model, "multiway", **options)
