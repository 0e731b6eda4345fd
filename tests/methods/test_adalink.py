"""AdaLink: the formula, folding, batches of several tasks, and what a map never touches."""
import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import transformers

import peftkit
from peftkit.errors import PeftkitError
from peftkit.methods import trainable_count
from peftkit.methods.adalink import AdaLinkLayer
from peftkit.papers.zhou2024.shares import llava_7b

from .weights import stir

pytestmark = [pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
              pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")]
TOLERANCE = 1e-5  # of logits of size 1 in float32
stir = partial(stir, scale=0.2)
sighted = pytest.mark.parametrize("case", ["llava", "idefics2", "qwen2_vl", "paligemma"], indirect=True)
FUNCTIONS = {None: lambda x: x, "tanh": torch.tanh, "relu": torch.relu, "gelu": torch.nn.functional.gelu}


def injected(base, **options):
    return peftkit.inject(copy.deepcopy(base), "adalink", rank=4, **options).eval()


def maps(model):
    return {layer.role: layer for layer in model.modules() if isinstance(layer, AdaLinkLayer)}


def outputs_of(modules, run):
    """What these modules return while `run` runs, in order."""
    seen = []
    handles = [module.register_forward_hook(lambda module, args, output: seen.append(output)) for module in modules]
    run()
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def entering(model, inputs):
    """What enters the first block of the language model: (rows, length, width)."""
    seen = []
    ends = "language_model.layers.0", "text_model.layers.0"
    block = next(module for name, module in model.named_modules() if name.endswith(ends))
    watching = block.register_forward_pre_hook(lambda module, args, kwargs: seen.append(
        args[0] if args else kwargs["hidden_states"]), with_kwargs=True)
    model(**inputs)
    watching.remove()
    return seen[0]


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_the_tokens_change_by_the_formula(paligemma, activation, bias):
    model = stir(injected(paligemma.model, activation=activation, bias=bias))
    assert set(maps(model)) == {"text", "image"}
    for layer in maps(model).values():
        before, after = outputs_of([layer.base_layer, layer], lambda: model(**paligemma.inputs))
        down, up = layer.adalink_down["default"], layer.adalink_up["default"]
        inner = before @ down.weight.T + (down.bias if bias else 0)
        expected = before + FUNCTIONS[activation](inner) @ up.weight.T + (up.bias if bias else 0)
        assert (after - expected).abs().max() < 1e-6 and (after - before).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_folded_away_it_gives_the_same_logits(case, bias, tmp_path):
    modality = "text" if case.name == "idefics2" else "both"  # a norm ends Idefics2's connector
    model = stir(injected(case.base, modality=modality, bias=bias))
    inputs, base = case.inputs(6, 6), case.logits(case.base, case.inputs(6, 6))
    expected = case.logits(model, inputs)
    merged = model.merge_and_unload()
    assert (case.logits(merged, inputs) - expected).abs().max() < TOLERANCE < (expected - base).abs().max()
    assert not any(isinstance(module, AdaLinkLayer) for module in merged.modules())
    merged.save_pretrained(tmp_path)
    loaded = type(merged).from_pretrained(tmp_path).eval()
    assert torch.equal(case.logits(loaded, inputs), case.logits(merged, inputs))


def test_the_folded_table_and_layer_are_those_of_the_paper(paligemma):
    model = stir(injected(paligemma.model))
    products = {role: (layer.adalink_up["default"].weight @ layer.adalink_down["default"].weight).detach().T.double()
                for role, layer in maps(model).items()}  # D U
    merged, base = model.merge_and_unload(), paligemma.model
    identity = torch.eye(32, dtype=torch.double)
    for path, product, old in [
        ("model.language_model.embed_tokens.weight", products["text"], lambda w: w),
        ("model.multi_modal_projector.linear.weight", products["image"], lambda w: w.T),
        ("model.multi_modal_projector.linear.bias", products["image"], lambda w: w),
    ]:
        new, expected = old(merged.get_parameter(path)), old(base.get_parameter(path)).double() @ (identity + product)
        assert (new - expected).abs().max() < 1e-6


def tied_t5():
    config = transformers.T5Config(vocab_size=101, d_model=32, d_kv=6, d_ff=48, num_layers=2, num_heads=4,
                                   decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(config).eval()


@torch.no_grad()
def test_a_tied_head_keeps_the_old_table(request, tmp_path):
    for kind, base in (("paligemma", request.getfixturevalue("paligemma").model), ("t5", tied_t5())):
        inputs = request.getfixturevalue(kind).inputs
        assert base.lm_head.weight is base.get_input_embeddings().weight
        model = stir(injected(base))
        expected, text = model(**inputs).logits, maps(model)["text"].base_layer
        merged = model.merge_and_unload()
        assert torch.equal(merged.lm_head.weight, base.lm_head.weight)
        assert not torch.equal(text.weight, base.lm_head.weight)
        assert merged.config.tie_word_embeddings == (kind == "t5")  # in T5 it still ties the decoder to the head
        merged.save_pretrained(tmp_path / kind)
        loaded = type(base).from_pretrained(tmp_path / kind).eval()
        assert (loaded(**inputs).logits - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("options, reason", [
    ({"activation": "gelu"}, "AdaLink with a non-linearity cannot be merged"),
    ({}, "AdaLink on a Idefics2RMSNorm cannot be merged")])
def test_what_cannot_be_folded_is_refused(request, options, reason):
    base = request.getfixturevalue("paligemma" if options else "tiny_idefics2").model
    with pytest.raises(ValueError, match=reason):
        injected(base, **options).merge_and_unload()


@torch.no_grad()
def test_two_active_maps_merge_and_unmerge(case):
    model = stir(injected(case.base, modality="text"))
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    model.base_model.set_adapter(["default", "other"])
    stir(model, seed=2)
    inputs = case.inputs(6)
    expected = case.logits(model, inputs)
    model.merge_adapter()
    assert (case.logits(model, inputs) - expected).abs().max() < TOLERANCE
    model.unmerge_adapter()
    assert torch.equal(case.logits(model, inputs), expected)


def several(case, **options):
    """A model with three tasks' maps: `default`, `wide` (of another rank) and `text`, which has no map for images."""
    model = stir(injected(case.base, **options))
    for seed, (name, rank) in enumerate((("wide", 6), ("text", 4)), 2):
        config = copy.deepcopy(model.peft_config["default"])
        config.rank = rank
        if name == "text":
            config.sites = {"text": config.sites["text"]}
        model.add_adapter(name, config)
        model.set_adapter(name)
        stir(model, seed)
    model.set_adapter("default")
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"bias": True}, {"activation": "tanh"}])
def test_rows_of_several_tasks_share_a_batch(case, options):
    model, tasks = several(case, **options), ["wide", "__base__", "text", "default", "wide"]
    inputs = case.inputs(6, 5, 6, 4, 3)
    mixed = case.logits(model, inputs | {"adapter_names": tasks})
    for row, task in enumerate(tasks):
        if task == "__base__":
            expected = case.logits(case.base, inputs)
        else:
            model.set_adapter(task)
            expected = case.logits(model, inputs)
        assert (mixed[row] - expected[row]).abs().max() < TOLERANCE
        others = [k for k, other in enumerate(tasks) if other != task]
        assert all((mixed[k] - expected[k]).abs().max() > 1e-4 for k in others)
    assert not any(layer.mixture for layer in maps(model).values())


@torch.no_grad()
@pytest.mark.parametrize("case", ["llava", "qwen2_vl"], indirect=True)
def test_pictures_follow_the_rows_that_show_them(case):
    model, tasks = several(case), ["default", "wide", "__base__", "text"]
    inputs, per_row = case.inputs(6, 6, 6, 6), (0, 2, 1, 1)
    ids, image = inputs["input_ids"], case.base.config.image_token_id
    shown = (ids == image).sum(1)[0]  # tokens of one picture
    picture = torch.cat([torch.full((int(shown),), image), torch.tensor([41])])
    rows = [torch.cat([*[picture] * count, row]) for count, row in zip(per_row, ids[:, shown:])]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    inputs |= {"input_ids": ids, "attention_mask": (ids > 0).long()}
    if case.name == "qwen2_vl":
        inputs["mm_token_type_ids"] = (ids == image).long()
    mixed = case.logits(model, inputs | {"adapter_names": tasks})
    for row, task in enumerate(tasks):
        alone = case.logits(model, inputs | {"adapter_names": [task] * 4})
        assert (mixed[row] - alone[row]).abs().max() < TOLERANCE


@pytest.mark.parametrize("beams", [1, 2])
def test_generation_serves_several_tasks_at_once(case, beams):
    model, tasks = several(case), ["wide", "__base__", "default"]
    inputs = {name: value for name, value in case.inputs(6, 6, 6).items() if name != "decoder_input_ids"}
    wanted = dict(max_new_tokens=4, num_beams=beams, do_sample=False)
    mixed = model.generate(**inputs, **wanted, adapter_names=tasks)
    for row, task in enumerate(tasks):
        alone = model.generate(**inputs, **wanted, adapter_names=[task] * 3)
        assert torch.equal(mixed[row], alone[row])
    assert torch.equal(mixed[1], copy.deepcopy(case.base).generate(**inputs, **wanted)[1])


def test_a_mixed_batch_that_cannot_be_is_refused(case):
    model, inputs = several(case), case.inputs(6, 6)
    for tasks, reason in [(["wdie", "wide"], "unknown adapter name 'wdie'; did you mean 'wide'"),
                          (["wide"], "an adapter name a row; got 1 for 2 rows")]:
        with pytest.raises(PeftkitError, match=reason):
            model(**inputs, adapter_names=tasks)
    other = copy.deepcopy(model.peft_config["default"])
    other.activation = "tanh"
    model.add_adapter("curved", other)
    with pytest.raises(PeftkitError, match=r"maps of one activation; got Tanh\(\), Identity\(\)"):
        model(**inputs, adapter_names=["curved", "default"])
    model.delete_adapter("curved")
    if case.name != "idefics2":
        model.merge_adapter()
        with pytest.raises(PeftkitError, match="without merged adapters"):
            model(**inputs, adapter_names=["default", "default"])


@sighted
def test_a_tuned_connector_takes_the_image_maps_place(case):
    model = injected(case.base, connector="tuned")
    assert set(maps(model)) == {"text"}
    with pytest.raises(PeftkitError, match="one connector for all tasks"):
        model(**case.inputs(6), adapter_names=["default"])
    with pytest.raises(ValueError):
        injected(case.base, connector="tuned", modality="image")


@torch.no_grad()
@sighted
@pytest.mark.parametrize("zeroed", ["text", "image"])
def test_without_one_modalitys_map_its_tokens_are_the_bases_bit_for_bit(case, zeroed):
    model, inputs = stir(injected(case.base)), case.inputs(6, 4, side="left")
    maps(model)[zeroed].adalink_up["default"].weight.zero_()
    changed = (entering(model, inputs) != entering(case.base, inputs)).any(-1)
    ids = inputs["input_ids"]
    images, words = ids == case.base.config.image_token_id, (ids != case.base.config.image_token_id) & (ids > 0)
    kept, adapted = (images, words) if zeroed == "image" else (~images, images)
    assert adapted.any() and changed[adapted].all() and not changed[kept].any()


def test_the_frozen_table_is_not_in_the_file(case, tmp_path):
    model = injected(case.base)
    model.save_pretrained(tmp_path)
    payload = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert payload < (tmp_path / "adapter_model.safetensors").stat().st_size < payload + 4096


@pytest.mark.parametrize("size, width, one", [  # facts 1.3: one map of rank 4, 16, 64 and 256
    ("small", 512, (4_096, 16_384, 65_536, 262_144)), ("base", 768, (6_144, 24_576, 98_304, 393_216)),
    ("large", 1024, (8_192, 32_768, 131_072, 524_288)), ("XL", 2048, (16_384, 65_536, 262_144, 1_048_576)),
    ("XXL", 4096, (32_768, 131_072, 524_288, 2_097_152))])
def test_the_counts_on_t5(size, width, one):
    t5 = SimpleNamespace(config=transformers.T5Config(d_model=width))
    assert tuple(trainable_count(t5, "adalink", rank=rank) for rank in (4, 16, 64, 256)) == one


@pytest.mark.parametrize("bias, published", [(False, 1_048_576), (True, 1_056_896)])
def test_the_counts_of_two_maps_of_width_4096(bias, published):
    base = llava_7b()
    assert trainable_count(base, "adalink", rank=64, bias=bias) == published
    with torch.device("meta"):
        model = peftkit.inject(base, "adalink", rank=64, bias=bias)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == published


@pytest.mark.parametrize("kind, options, reason", [
    ("paligemma", {"rank": 33}, "rank is 33; accepted: up to 32"),
    ("t5", {"modality": "image"}, "no image token enters their language model; accepted: 'text', 'both'"),
    ("paligemma", {"activation": "sigmoid"}, "unknown activation 'sigmoid'"),
    ("paligemma", {"modality": "txt"}, "unknown modality 'txt'; did you mean 'text'")])
def test_wrong_options_are_named(request, kind, options, reason):
    with pytest.raises(PeftkitError, match=reason):
        peftkit.inject(request.getfixturevalue(kind).model, "adalink", **options)
