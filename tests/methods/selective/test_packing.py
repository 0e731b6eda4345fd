"""Sparse differences: packed and unpacked to the bit, small as files, and equal by every way of loading."""
import copy

import peft
import pytest
import torch
from safetensors.torch import load_file

import peftkit
from peftkit.methods import load_adapter
from peftkit.methods.selective.packing import pack, unpack
from peftkit.methods.selective.tuner import SelectiveLayer, tuned

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:Input and output embeddings")
SPARSE = {"spider": {"layers": 1}, "random-mask": {"layers": 1}, "magnitude-mask": {"layers": 1},
          "gradient-mask": {"layers": 1}, "half": {"layers": 1}}
DENSE = {"full": {}, "language": {}, "connector": {}, "head": {}, "layernorm": {}, "bias": {}, "l2-sp": {"layers": 1}}
LOADERS = {
    "peft": lambda base, folder, train: peft.PeftModel.from_pretrained(base, folder, is_trainable=train),
    "peftkit": lambda base, folder, train: load_adapter(base, folder, trainable=train),
    "transformers": lambda base, folder, train: (base.load_adapter(str(folder), is_trainable=train), base)[1],
}


@torch.no_grad()
def change(model, share=0.25, seed=1):
    """Move a random share of the entries of each trained tensor."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in tuned(model):
        drawn = torch.rand(tensor.weight.shape, generator=generator) < share
        tensor.weight.add_(0.1 * drawn * torch.randn(tensor.weight.shape, generator=generator))
    return model


def injected(base, method, **options):
    return peftkit.inject(copy.deepcopy(base.model), method, **options).eval()


@torch.no_grad()
def logits(model, base):
    return model(**base.inputs).logits


# ---- bits ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(1,), (8,), (3, 5), (2, 4, 8), (1, 9), (0,)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_unpacking_gives_back_what_was_packed(shape, share):
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(shape, generator=generator)
    new = torch.where(torch.rand(shape, generator=generator) < share, torch.randn(shape, generator=generator), old)
    bits, values = pack(new, old)
    assert bits.dtype == torch.uint8 and bits.shape == (-(-old.numel() // 8),)
    assert values.shape == ((new != old).sum(),)
    before = old.clone()
    assert torch.equal(unpack(bits, values, old), new) and torch.equal(old, before)


def test_the_lowest_bit_stands_for_the_first_entry():
    bits, values = pack(torch.tensor([9.0, 0.0, 7.0] + 6 * [0.0] + [5.0]), torch.zeros(10))
    assert bits.tolist() == [0b101, 0b10] and values.tolist() == [9.0, 7.0, 5.0]


# ---- files -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_file_holds_a_bit_an_entry_and_four_bytes_a_change(paligemma, tmp_path, share):
    model = change(injected(paligemma, "spider", layers=2), share)
    model.save_pretrained(tmp_path)
    changed = sum((tensor.weight != tensor.start()).sum().item() for tensor in tuned(model))
    entries = sum(tensor.weight.numel() for tensor in tuned(model))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert changed == pytest.approx(share * entries, rel=0.05)
    held = sum(value.nbytes for value in tensors.values())
    assert held - 4 * changed == sum(-(-tensor.weight.numel() // 8) for tensor in tuned(model))
    assert held <= entries / 8 + 4 * changed + len(tuned(model))
    assert (tmp_path / "adapter_model.safetensors").stat().st_size - held <= 200 * len(tensors)  # names and shapes


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("method", SPARSE | DENSE)
def test_every_way_of_loading_gives_the_same_model(paligemma, tmp_path, method, loader, trainable):
    model = change(injected(paligemma, method, **(SPARSE | DENSE)[method]))
    expected = logits(model, paligemma)
    assert not torch.equal(expected, logits(paligemma.model, paligemma))
    model.save_pretrained(tmp_path)
    packed = [name for name in load_file(tmp_path / "adapter_model.safetensors") if name.endswith("_bits")]
    assert bool(packed) == (method in SPARSE)
    loaded = LOADERS[loader](copy.deepcopy(paligemma.model), tmp_path, trainable).eval()
    assert torch.equal(logits(loaded, paligemma), expected)
    ours, others = tuned(model), tuned(loaded)
    assert [t.name for t in ours] == [t.name for t in others]
    assert all(torch.equal(a.weight, b.weight) and b.weight.requires_grad == trainable for a, b in zip(ours, others))


@pytest.mark.parametrize("loader", LOADERS)
def test_a_loaded_adapter_is_saved_again_unchanged(paligemma, tmp_path, loader):
    change(injected(paligemma, "spider", layers=1)).save_pretrained(tmp_path / "first")
    loaded = LOADERS[loader](copy.deepcopy(paligemma.model), tmp_path / "first", False)
    loaded.save_pretrained(tmp_path / "second")
    first, second = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("first", "second"))
    strip = lambda name: name.removeprefix("base_model.model.")
    assert {strip(name) for name in first} == {strip(name) for name in second}
    assert all(torch.equal(value, second.get(name, second.get(strip(name)))) for name, value in first.items())
    again = LOADERS["peftkit"](copy.deepcopy(paligemma.model), tmp_path / "second", False)
    assert torch.equal(logits(again, paligemma), logits(loaded, paligemma))


# ---- copies, switches and merges -------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", SPARSE | DENSE)
def test_the_base_can_be_had_back_and_a_copy_stands_alone(paligemma, method):
    model = change(injected(paligemma, method, **(SPARSE | DENSE)[method]))
    expected, base = logits(model, paligemma), logits(paligemma.model, paligemma)
    with model.disable_adapter():
        assert torch.equal(logits(model, paligemma), base)
    other = change(copy.deepcopy(model), seed=2)
    assert not torch.equal(logits(other, paligemma), expected)
    assert torch.equal(logits(model, paligemma), expected)


def test_adapters_on_different_blocks_can_be_switched_and_deleted(paligemma, tmp_path):
    model = change(injected(paligemma, "spider", layers=1))
    expected, base = logits(model, paligemma), logits(paligemma.model, paligemma)
    model.save_pretrained(tmp_path)
    wider = injected(paligemma, "l2-sp", layers=2).peft_config["default"]
    model.add_adapter("wider", wider)
    assert torch.equal(logits(model, paligemma), expected)  # the new one waits
    model.set_adapter("wider")
    assert torch.equal(logits(model, paligemma), base)
    model.load_adapter(tmp_path, "again")
    model.add_adapter("fresh", copy.deepcopy(model.peft_config["again"]))
    assert any(".selective_weights.fresh." in name for name, _ in model.named_parameters())  # a file's sizes are gone
    for name, result in (("again", expected), ("default", expected), ("fresh", base)):
        model.set_adapter(name)
        assert torch.equal(logits(model, paligemma), result)
    model.set_adapter("again")
    for name in ("fresh", "default", "wider"):
        model.delete_adapter(name)
    assert {name for layer in model.modules() if isinstance(layer, SelectiveLayer)
            for name in layer.selective_weights} == {"again"}
    assert torch.equal(logits(model, paligemma), expected)


@pytest.mark.parametrize("method", [name for name in SPARSE | DENSE if name != "bias"])
def test_merging_keeps_the_function_and_the_adapter(paligemma, tmp_path, method):
    model = change(injected(paligemma, method, **(SPARSE | DENSE)[method]))
    expected = logits(model, paligemma)
    model.merge_adapter()
    assert torch.equal(logits(model, paligemma), expected)
    model.save_pretrained(tmp_path)  # W0 is still known while it is merged
    assert torch.equal(logits(load_adapter(copy.deepcopy(paligemma.model), tmp_path), paligemma), expected)
    model.unmerge_adapter()
    assert torch.equal(logits(model, paligemma), expected)
    assert torch.equal(logits(model.merge_and_unload(), paligemma), expected)


def test_two_adapters_at_once_are_refused(paligemma):
    model = injected(paligemma, "spider", layers=1)
    model.add_adapter("second", injected(paligemma, "spider", layers=1).peft_config["default"])
    with pytest.raises(ValueError, match="adapter default is merged, and second would take its place"):
        model.merge_adapter(["default", "second"])
    model.unmerge_adapter()
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="adapters default, second are active at once"):
        logits(model, paligemma)
