"""Injection: where a method starts, how precisely it trains, and what is refused. (What every method can do on every
model type is in test_matrix.py.)"""
import copy
import dataclasses
import socket

import peft
import pytest
import torch

import peftkit
from peftkit.data.collate import encode
from peftkit.errors import PeftkitError
from peftkit.methods import METHODS, load_adapter, trainable_count
from peftkit.methods.inject import _check_targets
from peftkit.training.forward import answer_loss

from .weights import perturb, trained

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # peft asks transformers by an old name
BASES = ("tiny_llava", "tiny_idefics2")
DRAWN = ("lora", "adapter", "multiway", "adalink", "prompt", "prefix", "prefix-peft", "side")
WITH_CONNECTOR = [method for method in METHODS if not METHODS[method].refuses_connector]
LOSSY = [pytest.param(method, marks=pytest.mark.xfail(reason="peft loads the connector's copy in the base's bfloat16"))
         for method in ("lora", "dora", "ia3", "adapter", "multiway", "adalink", "prompt", "prefix", "prefix-peft")]


@pytest.fixture(scope="module", params=BASES)
def base(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def batch(base):
    """Four training rows of the base's own processor: input_ids, attention_mask, labels, pictures."""
    task = peftkit.task("vqav2", train_size=4, validation_size=1, test_size=1)
    return encode(base.processor, task.train, task.prompt).training_batch([0, 1, 2, 3])


@pytest.fixture(scope="module")
def half(batch):
    """The same rows in bfloat16."""
    return {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in batch.items()}


def injected(base, method, dtype=torch.float32, **options):
    return peftkit.inject(copy.deepcopy(base.model).to(dtype), method, **options).eval()


@torch.no_grad()
def logits(model, batch):
    return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


# ---- counts and initial values ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("placement", ["attention", "mlp", "both"])
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "adapter"])
def test_formula_and_modules_agree_in_every_placement(base, method, placement):
    model = injected(base, method, placement=placement)
    assert sum(p.numel() for p in trained(model).values()) == trainable_count(base.model, method, placement=placement)


def test_the_released_initialization_is_not_an_identity(base, batch):
    change = logits(injected(base, "adapter", init="released"), batch) - logits(base.model, batch)
    assert change.abs().max() > 1e-2


@pytest.mark.parametrize("method", DRAWN)
def test_initial_values_depend_on_the_seed_alone(base, method):
    torch.manual_seed(1)
    first = trained(injected(base, method, seed=7))
    torch.manual_seed(2)
    same, other = trained(injected(base, method, seed=7)), trained(injected(base, method, seed=8))
    assert all(torch.equal(first[name], same[name]) for name in first)
    changed = [name for name in other if not torch.equal(first[name], other[name])]
    assert changed and all(torch.count_nonzero(first[name]) == 0 for name in set(other) - set(changed))


@pytest.mark.parametrize("method", ["lora", "adapter"])
@pytest.mark.parametrize("placement", ["attention", "mlp"])
def test_shared_parameters_start_alike_in_every_placement(base, method, placement):
    part = trained(injected(base, method, placement=placement))
    whole = trained(injected(base, method, placement="both", connector="tuned"))
    assert set(part) < set(whole) and all(torch.equal(part[name], whole[name]) for name in part)


def test_parameters_of_the_same_shape_start_differently(base):
    first, second = [p for name, p in trained(injected(base, "lora")).items() if "q_proj.lora_A" in name]
    assert not torch.equal(first, second)


def test_initial_values_follow_the_stated_distributions(base):
    for name, value in trained(injected(base, "lora", rank=32)).items():
        if "lora_A" in name:
            bound = value.shape[1] ** -0.5
            assert 0.99 * bound < value.abs().max() <= bound
            assert value.std().item() == pytest.approx(bound / 3 ** 0.5, rel=0.05)
        else:
            assert torch.count_nonzero(value) == 0
    for value in trained(injected(base, "ia3")).values():
        assert (value == 1).all()
    for name, value in trained(injected(base, "adapter", init="released")).items():
        assert value.std().item() == pytest.approx(0.02, rel=0.1), name
    (prefix,) = trained(injected(base, "prefix-peft")).values()
    assert prefix.mean().item() == pytest.approx(0, abs=0.05) and prefix.std().item() == pytest.approx(1, rel=0.05)


def test_saving_a_loaded_base_makes_no_network_call(tiny_llava, tmp_path, monkeypatch):
    tiny_llava.model.save_pretrained(tmp_path / "base")
    tiny_llava.processor.save_pretrained(tmp_path / "base")
    calls = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: calls.append(args) or [])
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: calls.append(address))
    model = peftkit.inject(peftkit.load(str(tmp_path / "base")).model, "lora", connector="tuned")
    model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists() and calls == []


# ---- precision -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", WITH_CONNECTOR)
def test_on_a_bfloat16_base_what_is_trained_is_float32(base, half, method):
    model = injected(base, method, torch.bfloat16, connector="tuned")
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    assert logits(model, half).dtype == torch.bfloat16
    answer_loss(model, half).backward()
    assert method == "full" or all(p.grad is not None for p in trained(model).values())


@pytest.mark.parametrize("method", ["full", "language", "connector", "spider", *LOSSY])
def test_on_a_bfloat16_base_peft_loads_the_same_logits(base, half, method, tmp_path):
    model = perturb(injected(base, method, torch.bfloat16, connector="tuned"))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base.model).to(torch.bfloat16), tmp_path).eval()
    assert torch.equal(logits(loaded, half), logits(model, half))


@pytest.mark.parametrize("method", WITH_CONNECTOR)
def test_on_a_bfloat16_base_our_own_loader_gives_the_same_logits(base, half, method, tmp_path):
    model = perturb(injected(base, method, torch.bfloat16, connector="tuned"))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = load_adapter(copy.deepcopy(base.model).to(torch.bfloat16), tmp_path)
    assert torch.equal(logits(loaded, half), logits(model, half))


@pytest.mark.parametrize("method", ["ia3", "connector"])
def test_a_float32_connector_moves_where_a_bfloat16_copy_would_not(base, half, method):
    model = peftkit.inject(copy.deepcopy(base.model).to(torch.bfloat16), method, connector="tuned")
    copied = ("modules_to_save", "connector.perceiver", "multi_modal_projector")
    weights = {name: p for name, p in trained(model).items() if p.ndim == 2 and any(part in name for part in copied)}
    start = {name: p.detach().clone() for name, p in weights.items()}
    copies = {name: p.detach().to(torch.bfloat16).requires_grad_() for name, p in weights.items()}
    optimizer = torch.optim.AdamW([*weights.values(), *copies.values()], lr=2e-5, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        answer_loss(model, half).backward()
        for name, p in weights.items():
            copies[name].grad = p.grad.to(torch.bfloat16)
        optimizer.step()
    for name, p in weights.items():
        large = start[name].abs() > 2 ** -6  # half a bfloat16 step is 6e-5 there, three times the learning rate
        assert torch.equal(copies[name][large], start[name][large].to(torch.bfloat16))
        assert ((p - start[name])[large].abs() > 1e-5).float().mean() > 0.9


# ---- refusals -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method, options, message", [
    ("lorra", {}, "unknown method 'lorra'; did you mean 'lora' or 'dora'. accepted: .*adapter"),
    ("lora", {"rnak": 4}, "unknown option of lora 'rnak'; did you mean 'rank'. accepted: rank, "),
    ("ia3", {"rank": 4}, "unknown option of ia3 'rank'.* accepted: .*placement"),
    ("lora", {"placement": "mpl"}, "unknown placement 'mpl'; did you mean 'mlp'. accepted: mlp, attention, both"),
    ("lora", {"connector": "tune"}, "unknown connector 'tune'; did you mean 'tuned'. accepted: tuned, frozen"),
    ("adapter", {"activation": "geluu"}, "unknown activation 'geluu'; did you mean 'gelu'.* accepted: gelu"),
    ("adapter", {"init": "zeros"}, "unknown init 'zeros'; did you mean 'zero'.*accepted: zero, .*released"),
    ("lora", {"rank": 0}, "rank is 0; accepted: a whole number above 0"),
    ("lora", {"rank": 2.5}, "rank is 2.5; accepted: a whole number above 0"),
    ("lora", {"alpha": 0}, "alpha is 0; accepted: a number above 0"),
    ("adapter", {"bottleneck": "16"}, "bottleneck is '16'; accepted: a whole number above 0"),
    ("adapter", {"scale": float("nan")}, "scale is nan; accepted: a number above 0"),
    ("prefix", {"tokens": True}, "tokens is True; accepted: a whole number above 0"),
    ("lora", {"dropout": 1.5}, "dropout is 1.5; accepted: 0 up to, not including, 1"),
    ("adapter", {"dropout": -0.1}, "dropout is -0.1; accepted: 0 up to, not including, 1"),
    ("adapter", {"preset": "houlsbi"}, "unknown preset 'houlsbi'; did you mean 'houlsby'"),
    ("lora", {"rank": 129}, "rank is 129; accepted: up to 128, the width of the layers it belongs to"),
    ("adapter", {"bottleneck": 129}, "bottleneck is 129; accepted: up to 128"),
    ("adalink", {"rank": 0}, "rank is 0; accepted: a whole number above 0"),
    ("adalink", {"rank": 200}, "rank is 200; accepted: up to 128"),
    ("adalink", {"modality": "picture"}, "unknown modality 'picture'.* accepted: text, image, both"),
    ("adalink", {"modality": "image", "connector": "tuned"}, "modality='image' has nothing left to adapt"),
    ("multiway", {"enhancer": "bottleneck", "init": "released"}, "unknown init 'released'; accepted: zero"),
    ("side", {"bottleneck": 129}, "bottleneck is 129; accepted: up to 128"),
    ("side", {"connector": "tuned"}, "side cannot be combined with connector='tuned': gradients never enter"),
    ("spider", {"layers": 3}, "layers is 3; accepted: 1 to 2, the blocks of this model"),
    ("random-mask", {"share": 1.0}, "share is 1.0; accepted: 0 up to, not including, 1"),
])
def test_wrong_input_is_named_with_what_is_accepted(tiny_llava, method, options, message):
    with pytest.raises(PeftkitError, match=message):
        peftkit.inject(tiny_llava.model, method, **options)
    assert all(p.requires_grad for p in tiny_llava.model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_injecting_twice_is_refused(tiny_llava, method):
    model = injected(tiny_llava, method, connector="tuned" if method in WITH_CONNECTOR else "frozen")
    for again in (model, model.get_base_model()):  # the base was changed in place
        with pytest.raises(PeftkitError, match="the model holds a peft method already"):
            peftkit.inject(again, "lora")


def test_a_pattern_that_matches_nothing_is_named(tiny_llava):
    config = peft.LoraConfig()
    config.sites = {"after": r"model\.language_model\.layers\.9\.mlp"}
    with pytest.raises(PeftkitError, match=r"nothing in this llava model matches .*layers.*\(after\); accepted: a pattern"):
        _check_targets(tiny_llava.model, config)


def test_a_method_that_touches_another_region_is_a_bug_that_is_caught(tiny_llava, monkeypatch):
    monkeypatch.setitem(METHODS, "layernorm", dataclasses.replace(METHODS["layernorm"], regions=("head",)))
    with pytest.raises(RuntimeError, match=r"injection trained \['language'\] where \['head'\] was intended"):
        peftkit.inject(copy.deepcopy(tiny_llava.model), "layernorm")
