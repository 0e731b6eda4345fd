"""Bottleneck adapters: where each insertion stands in a block, the presets, the counts, and a user's own model."""
import copy
import itertools
from functools import partial

import peft
import pytest
import torch
import transformers
from torch.nn import functional as F

import peftkit
from peftkit.errors import PeftkitError
from peftkit.methods import trainable_count
from peftkit.methods.adalink import AdaLinkConfig
from peftkit.methods.adapter import PRESETS, AdapterConfig, AdapterLayer, AdapterOptions

from .weights import stir, trained

pytestmark = [pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
              pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")]
TOLERANCE = 1e-5  # of hidden states of size 1 in float32
stir = partial(stir, scale=0.3)
FUNCTIONS = {"tanh": torch.tanh, "relu": torch.relu, "gelu": F.gelu, "silu": F.silu}
INSERTIONS, PLACEMENTS = ("zhou", "after", "parallel"), ("attention", "mlp", "both")


def injected(base, **options):
    return peftkit.inject(copy.deepcopy(base), "adapter", bottleneck=8, **options).eval()


def change(layer, x, options):
    """s U f(D x) of an adapted layer, with biases if there are any; zero for a layer without an adapter."""
    if not isinstance(layer, AdapterLayer):
        return torch.zeros_like(x)
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    bias = options.get("bias", True)
    inner = FUNCTIONS[options["activation"]](x @ down.weight.T + (down.bias if bias else 0))
    return options["scale"] * (inner @ up.weight.T + (up.bias if bias else 0))


def plain(layer):
    return layer.base_layer if isinstance(layer, AdapterLayer) else layer


def block_by_hand(block, x, options, **kwargs):
    """What a Llama block with adapters makes of x (batch, length, width)."""
    changed = lambda layer, value: value + change(layer, value, options)
    sequential = options["insertion"] != "parallel"
    normed = block.input_layernorm(x)
    attention, outward = plain(block.self_attn), plain(block.self_attn).o_proj
    seen = []
    watching = plain(outward).register_forward_hook(lambda module, args, output: seen.append(output))
    attention(normed, **kwargs)
    watching.remove()
    h = x + (changed(outward, seen[0]) if sequential else seen[0] + change(block.self_attn, normed, options))
    normed, mlp = block.post_attention_layernorm(h), plain(block.mlp)
    if options["insertion"] == "zhou":
        gate, up = (plain(layer)(changed(layer, normed)) for layer in (mlp.gate_proj, mlp.up_proj))
    else:
        gate, up = mlp.gate_proj(normed), mlp.up_proj(normed)
    made = plain(mlp.down_proj)(F.silu(gate) * up)
    return h + (changed(mlp.down_proj, made) if sequential else made + change(block.mlp, normed, options))


@torch.no_grad()
@pytest.mark.parametrize("case", ["llava"], indirect=True)
@pytest.mark.parametrize("activation, scale, bias", [("relu", 4.0, True), ("tanh", 1.0, False), ("gelu", 0.5, True),
                                                     ("silu", 2.0, False)])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("insertion", INSERTIONS)
def test_a_block_follows_the_formula(case, insertion, placement, activation, scale, bias):
    options = dict(insertion=insertion, placement=placement, activation=activation, scale=scale, bias=bias)
    model, seen = stir(injected(case.base, **options)), []
    model.get_submodule("base_model.model.model.language_model.layers.1").register_forward_hook(
        lambda module, args, kwargs, output: seen.append((module, args, kwargs, output)), with_kwargs=True)
    case.logits(model, case.inputs(6, 4))
    ((block, (x,), kwargs, output),) = seen
    inside = {name for name, module in block.named_modules() if isinstance(module, AdapterLayer)}
    wanted = {"zhou": ["self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
              "after": ["self_attn.o_proj", "mlp.down_proj"], "parallel": ["self_attn", "mlp"]}[insertion]
    assert inside == {name for name in wanted if placement == "both" or name.startswith(
        "mlp" if placement == "mlp" else "self_attn")}
    expected = block_by_hand(block, x, options, **kwargs | {"past_key_values": None})
    assert (output - expected).abs().max() < TOLERANCE
    without = block_by_hand(block, x, options | {"scale": 0.0}, **kwargs | {"past_key_values": None})
    assert (expected - without).abs().max() > 0.01


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_what_is_not_given_and_no_more(preset):
    filled = AdapterOptions(preset=preset)
    assert {name: getattr(filled, name) for name in PRESETS[preset]} == PRESETS[preset]
    given = {"placement": "attention", "insertion": "after", "activation": "silu", "scale": 0.25, "init": "released",
             "bias": not PRESETS[preset]["bias"]}
    chosen = AdapterOptions(preset=preset, **given)
    assert {name: getattr(chosen, name) for name in given} == given


def test_the_presets_are_those_of_their_papers():
    facts = {"zhou": ("mlp", "zhou", "tanh", 1.0, False), "houlsby": ("both", "after", "gelu", 1.0, True),
             "pfeiffer": ("mlp", "after", "relu", 1.0, True), "parallel": ("mlp", "parallel", "relu", 4.0, True)}
    names = "placement", "insertion", "activation", "scale", "bias"
    assert {preset: tuple(values[name] for name in names) for preset, values in PRESETS.items()} == facts


@pytest.mark.parametrize("init, down, up", [("zero", 0.02, 0.0), ("near-zero", 1e-3, 1e-3), ("released", 0.02, 0.02)])
def test_the_initial_values_have_the_stated_spread(tiny_llava, init, down, up):
    parameters = trained(injected(tiny_llava.model, init=init, bias=True))
    for part, std in (("down", down), ("up", up)):
        weights = [p.flatten() for name, p in parameters.items() if name.endswith(f"_{part}.default.weight")]
        assert torch.cat(weights).std().item() == pytest.approx(std, rel=0.05)
    assert all(not p.any() for name, p in parameters.items() if name.endswith("bias"))


@torch.no_grad()
@pytest.mark.parametrize("insertion", INSERTIONS)
def test_zero_initialization_changes_nothing(case, insertion):
    if case.name == "blip" and insertion == "parallel":
        with pytest.raises(PeftkitError, match="no single module holds a whole sub-layer; accepted: 'zhou', 'after'"):
            injected(case.base, insertion=insertion)
        return
    model, inputs = injected(case.base, insertion=insertion, placement="both", bias=True), case.inputs(6, 4)
    assert torch.equal(case.logits(model, inputs), case.logits(case.base, inputs))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("case, preset", [
    *itertools.product(["llava", "t5"], PRESETS), *itertools.product(["blip"], ["zhou", "houlsby", "pfeiffer"])],
    indirect=["case"])
def test_formula_and_modules_agree_in_every_preset_and_placement(case, preset, placement):
    options = dict(bottleneck=8, preset=preset, placement=placement)
    model = peftkit.inject(copy.deepcopy(case.base), "adapter", **options)
    assert sum(p.numel() for p in trained(model).values()) == trainable_count(case.base, "adapter", **options)


def test_dropout_works_in_training_only(tiny_llava):
    model, ids = stir(injected(tiny_llava.model, dropout=0.5)), torch.arange(40, 46)[None]
    logits = lambda: model(input_ids=ids).logits
    assert torch.equal(logits(), logits())
    model.train()
    assert not torch.equal(logits(), logits())


# ---- a model of the user's own ---------------------------------------------------------------------------------------

def llama(tied):
    config = transformers.LlamaConfig(vocab_size=101, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                      num_attention_heads=4, tie_word_embeddings=tied)
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("config, count", [
    (lambda **more: AdapterConfig(target_modules=["down_proj"], bottleneck=4, **more), 2 * 2 * 32 * 4),
    (lambda **more: AdapterConfig(sites={"before": ["gate_proj"], "parallel": ["self_attn"]}, bottleneck=4,
                                  bias_terms=True, **more), 2 * 2 * (2 * 32 * 4 + 36)),
    (lambda **more: AdaLinkConfig(target_modules=["embed_tokens"], rank=4, **more), 2 * 32 * 4),
    (lambda **more: AdaLinkConfig(sites={"text": r"model\.embed_tokens"}, rank=4, **more), 2 * 32 * 4)])
def test_a_plain_llama_takes_the_tuners_through_peft(config, count, tied, task, tmp_path):
    base, inputs = llama(tied), {"input_ids": torch.arange(5, 15)[None]}
    model = peft.get_peft_model(llama(tied), config(task_type=task))
    assert model.get_nb_trainable_parameters()[0] == count
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs).logits, base(**inputs).logits)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(p.grad is not None for p in trained(model).values())
    expected = stir(model)(**inputs).logits
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 4 * count + 2048
    loaded = peft.PeftModel.from_pretrained(llama(tied), tmp_path).eval()
    assert torch.equal(loaded(**inputs).logits, expected) and not torch.equal(base(**inputs).logits, expected)
    if isinstance(model.peft_config["default"], AdaLinkConfig):
        mixed = loaded(input_ids=inputs["input_ids"].repeat(2, 1), adapter_names=["__base__", "default"]).logits
        assert torch.allclose(mixed, torch.cat([base(**inputs).logits, expected]), atol=TOLERANCE)
        assert torch.allclose(loaded.merge_and_unload()(**inputs).logits, expected, atol=TOLERANCE)


def test_a_site_inside_another_is_refused():
    with pytest.raises(PeftkitError, match="model.layers.0.mlp.gate_proj lies in a module that is adapted as a whole"):
        peft.get_peft_model(llama(False), AdapterConfig(sites={"before": ["gate_proj"], "parallel": ["mlp"]}))
