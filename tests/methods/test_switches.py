"""The switches of `inject`: connector, vision tower and vocabulary are trained beside a method, and nothing else is."""
import copy
import dataclasses

import peft
import pytest
import torch

import peftkit
from peftkit import TrainConfig
from peftkit.data import encode
from peftkit.errors import PeftkitError
from peftkit.methods import METHODS, load_adapter
from peftkit.methods.inject import _assert_parts
from peftkit.methods.switches import SWITCHES, trained_beside
from peftkit.training import train
from peftkit.training.features import can_cache
from peftkit.training.forward import answer_loss
from peftkit.training.loop import optimizer_groups

from .weights import perturb, trained

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # peft asks transformers by an old name
ALL = dict.fromkeys(SWITCHES, "tuned")
ADDITIVE = ("lora", "ia3", "adapter", "prefix-peft")
VISION = {"llava": "model.vision_tower.", "idefics2": "model.vision_model.", "paligemma": "model.vision_tower.",
          "qwen2_vl": "model.visual.", "blip": "vision_model."}
CONNECTOR = {"llava": "model.multi_modal_projector.", "idefics2": "model.connector.",
             "qwen2_vl": "model.visual.merger.", "paligemma": "model.multi_modal_projector.", "blip": "none"}
TABLES = {"llava": ("model.language_model.embed_tokens.", "lm_head."),
          "idefics2": ("model.text_model.embed_tokens.", "lm_head."),
          "qwen2_vl": ("model.language_model.embed_tokens.", "lm_head.")}


@pytest.fixture(scope="module", params=["tiny_llava", "tiny_idefics2"])
def base(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def rows(base):
    """Eight rows of a task, encoded by the base's processor."""
    task = peftkit.task("vqav2", train_size=8, validation_size=1, test_size=1)
    return encode(base.processor, task.train, task.prompt)


@pytest.fixture(scope="module")
def batch(rows):
    return rows.training_batch([0, 1, 2, 3])


def injected(model, method, dtype=torch.float32, **options):
    return peftkit.inject(copy.deepcopy(model).to(dtype), method, **options).eval()


@torch.no_grad()
def logits(model, batch):
    return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


def named(model, part):
    """Parameters in peft's wrappers whose path has this part in it, under their names in the base."""
    prefix = "base_model." if hasattr(model, "prompt_encoder") else "base_model.model."
    return {name.replace(part, ".").removeprefix(prefix): p for name, p in model.named_parameters() if part in name}


def copied(model):
    """Names, as in the base, of the parameters whose copies are trained."""
    return {name for name, p in named(model, ".modules_to_save.default.").items() if p.requires_grad}


def intended(model, *switches):
    """Names of the base's parameters that these switches should train."""
    kind = model.config.model_type
    vision, connector = VISION[kind], CONNECTOR[kind]
    belongs = {"connector": lambda name: name.startswith(connector),
               "vision": lambda name: name.startswith(vision) and not name.startswith(connector),
               "vocabulary": lambda name: name.startswith(TABLES[kind])}
    return {name for name, _ in model.named_parameters() if any(belongs[switch](name) for switch in switches)}


# ---- what is trained -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("switches", [["vision"], ["vocabulary"], ["vision", "connector"], SWITCHES])
@pytest.mark.parametrize("method", ADDITIVE)
def test_exactly_the_intended_parameters_train(base, method, switches):
    alone = trained(injected(base.model, method))
    model = injected(base.model, method, **dict.fromkeys(switches, "tuned"))
    assert copied(model) == intended(base.model, *switches)
    own = {name: p for name, p in trained(model).items() if "modules_to_save" not in name}
    assert own.keys() == alone.keys() and all(torch.equal(own[name], alone[name]) for name in own)
    assert trained_beside(model) == {id(p) for name, p in trained(model).items() if "modules_to_save" in name}


@pytest.mark.parametrize("name, switches", [("qwen2_vl", ["vision"]), ("qwen2_vl", SWITCHES), ("paligemma", ["vision"]),
                                            ("blip", ["vision"])])
def test_other_model_types_train_the_parts_that_they_have(request, name, switches):
    case = request.getfixturevalue(name)
    model = injected(case.model, "lora", **dict.fromkeys(switches, "tuned"))
    assert copied(model) == intended(case.model, *switches)
    assert torch.isfinite(model(**case.inputs).loss if name == "blip" else model(**case.inputs).logits).all()


@pytest.mark.parametrize("method", ADDITIVE)
def test_the_trainable_map_counts_every_copy_in_its_region(base, method):
    before = peftkit.trainable_map(base.model)
    alone, beside = (peftkit.trainable_map(injected(base.model, method, **options)) for options in ({}, ALL))
    added = beside["trainable"].sub(alone["trainable"], fill_value=0)
    table = base.model.lm_head.weight.numel()
    assert added["language"] == added["head"] == table
    assert all(added[region] == before.loc[region, "total"] for region in ("vision", "connector"))
    assert beside["total"].sum() == alone["total"].sum()


def test_more_or_less_than_was_asked_for_is_a_bug_that_is_caught(base):
    model = injected(base.model, "lora", vocabulary="tuned")
    for tuned in ([], ["vocabulary", "vision"]):  # one too many, one missing
        with pytest.raises(RuntimeError, match=r"trained \['language', 'vocabulary'\] .* a bug"):
            _assert_parts(model, ("language",), tuned)


def test_a_copy_of_another_layer_of_the_language_model_is_a_bug_that_is_caught(tiny_llava):
    config = peft.LoraConfig(target_modules=r".*language_model.*q_proj", modules_to_save=["language_model.norm"])
    model = peft.get_peft_model(copy.deepcopy(tiny_llava.model), config)
    with pytest.raises(RuntimeError, match=r"trained \['base_model.model.model.language_model.norm', 'language'\]"):
        _assert_parts(model, ("language",), [])


# ---- training --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", ADDITIVE)
def test_one_step_of_the_loop_moves_every_copy_that_is_read_and_no_original(base, rows, method):
    model = injected(base.model, method, **ALL)
    before = {name: p.detach().clone() for name, p in trained(model).items()}
    features = dataclasses.replace(rows)
    result = train(model, base.processor, features, TrainConfig(epochs=1, batch_size=8, learning_rate=1e-2,
                                                                warmup_ratio=0.0, progress=False))
    assert result.steps == 1 and features.features is None
    still = [name for name, p in trained(model).items() if "modules_to_save" in name and torch.equal(p, before[name])]
    unread = ["k_proj.bias"]  # softmax forgets it
    if base.model.config.model_type == "llava":  # it reads the layer before the last
        unread += [f"layers.{base.model.config.vision_config.num_hidden_layers - 1}.", "post_layernorm"]
    assert not [name for name in still if not any(part in name for part in unread)]
    own, originals = dict(base.model.named_parameters()), named(model, ".original_module.")
    assert len(originals) == len(intended(base.model, *SWITCHES))
    assert all(torch.equal(p, own[name]) for name, p in originals.items())


def test_features_are_kept_unless_the_tower_trains(base):
    assert can_cache(injected(base.model, "lora", connector="tuned", vocabulary="tuned"))
    assert not can_cache(injected(base.model, "lora", vision="tuned"))
    assert not can_cache(injected(base.model, "prefix-peft", vision="tuned"))


def test_all_copies_learn_at_the_connectors_rate(base):
    model = injected(base.model, "lora", **ALL)
    method, beside = optimizer_groups(model, TrainConfig(learning_rate=1e-3, connector_learning_rate=5e-5))[:2]
    assert (method["lr"], beside["lr"]) == (1e-3, 5e-5)
    assert set(map(id, beside["params"])) == {id(p) for name, p in trained(model).items() if "modules_to_save" in name}


# ---- back to the base, to a file, into the weights -------------------------------------------------------------------

@pytest.mark.parametrize("method", ADDITIVE)
def test_saved_copies_come_back_and_can_be_switched_off(base, batch, method, tmp_path):
    model = perturb(injected(base.model, method, **ALL))
    tuned, plain = logits(model, batch), logits(base.model, batch)
    assert (tuned - plain).abs().max() > 1e-2
    model.save_pretrained(tmp_path)
    for load in (peft.PeftModel.from_pretrained, load_adapter):
        assert torch.equal(logits(load(copy.deepcopy(base.model), tmp_path).eval(), batch), tuned)
    with model.disable_adapter():
        if method == "prefix-peft":  # peft's prompt methods leave copies on
            assert (logits(model, batch) - plain).abs().max() > 1e-2
        else:
            assert torch.equal(logits(model, batch), plain)
    assert torch.equal(logits(model, batch), tuned)


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_copies_merge_with_the_method(base, batch, method):
    deep = {"llava": "vision", "idefics2": "connector"}[base.model.config.model_type]  # weights at several depths
    switches = [switch for switch in SWITCHES if (method, switch) != ("ia3", deep)]  # there peft's IA3 cannot merge
    model = perturb(injected(base.model, method, **dict.fromkeys(switches, "tuned")))
    tuned = logits(model, batch)
    merged = model.merge_and_unload()
    assert not [name for name, _ in merged.named_parameters() if "modules_to_save" in name]
    assert torch.allclose(logits(merged, batch), tuned, atol=1e-4)


@pytest.mark.parametrize("method", ADDITIVE)
def test_on_a_bfloat16_base_copies_are_float32_and_come_back(base, batch, method, tmp_path):
    half = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in batch.items()}
    model = perturb(injected(base.model, method, torch.bfloat16, **ALL))
    assert {p.dtype for p in trained(model).values()} == {torch.float32} and model.dtype == torch.bfloat16
    found = logits(model, half)
    assert found.dtype == torch.bfloat16
    answer_loss(model, half).backward()
    for part in ("patch_embedding", "embed_tokens", "lm_head"):
        assert all(p.grad.any() for name, p in trained(model).items() if f".{part}." in name)
    model.save_pretrained(tmp_path)
    loaded = load_adapter(copy.deepcopy(base.model).to(torch.bfloat16), tmp_path)
    assert torch.equal(logits(loaded, half), found)


# ---- refusals --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method, options, message", [
    ("lora", {"vision": "tune"}, "unknown vision 'tune'; did you mean 'tuned'. accepted: tuned, frozen"),
    ("lora", {"vocabulary": True}, "unknown vocabulary True; accepted: frozen, tuned"),
    ("lora", {"visoin": "tuned"}, "unknown option of lora 'visoin'; did you mean 'vision'"),
    ("spider", {"vision": "tuned"}, "spider trains chosen weights .* vision='tuned'; accepted: 'frozen', or .*'full'"),
    ("head", {"vocabulary": "tuned"}, "head trains chosen weights .* vocabulary='tuned'.* 'language', .*'full'"),
    ("side", {"vision": "tuned"}, "side cannot be combined with vision='tuned': gradients never enter"),
    ("prompt", {"vocabulary": "tuned"}, "prompt cannot be combined with vocabulary='tuned': .*frozen table"),
    ("adalink", {"modality": "text", "vocabulary": "tuned"},
     "modality='text' has nothing left to adapt with vocabulary='tuned'"),
    ("adalink", {"connector": "tuned", "vocabulary": "tuned"},
     "modality='both' has nothing left to adapt with vocabulary='tuned' and connector='tuned'"),
])  # fmt: skip
def test_combinations_that_cannot_work_say_why(tiny_llava, method, options, message):
    with pytest.raises(PeftkitError, match=message):
        peftkit.inject(tiny_llava.model, method, **options)


@pytest.mark.parametrize("name, switch, message", [
    ("t5", "vision", "vision='tuned' is not possible for t5 models: they have no picture"),
    ("t5", "vocabulary", "vocabulary='tuned' is not possible for t5 models: encoder and decoder share one table"),
    ("blip", "vocabulary", "vocabulary='tuned' is not possible for blip models: their encoder and decoder have"),
    ("paligemma", "vocabulary", "not possible for this paligemma model: its head is tied to its word embedding"),
])
def test_a_part_that_is_not_there_or_is_tied_is_named(request, name, switch, message):
    with pytest.raises(PeftkitError, match=message):
        injected(request.getfixturevalue(name).model, "lora", **{switch: "tuned"})


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ADDITIVE])
def test_every_other_method_takes_the_switches_or_refuses_them_in_words(base, batch, method):
    for switch in ("vision", "vocabulary"):
        try:
            model = injected(base.model, method, **{switch: "tuned"})
        except PeftkitError as error:
            assert f"{switch}='tuned'" in str(error)
        else:
            assert copied(model) == intended(base.model, switch)
            answer_loss(model, batch).backward()
            assert any(p.grad is not None for name, p in trained(model).items() if "modules_to_save" in name)
