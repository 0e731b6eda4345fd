"""The strict loader: what does not fit the base, or this version, is an error that says so."""
import copy
import json

import pytest
import torch

import peftkit
from peftkit.errors import PeftkitError
from peftkit.methods import file_bytes, load_adapter

METHODS = ("lora", "adapter", "adalink", "prefix", "prefix-peft", "spider")


@pytest.fixture
def folder(tiny_llava, tmp_path):
    """A function that saves a freshly injected method and returns its folder."""
    def save(method, **options):
        model = peftkit.inject(copy.deepcopy(tiny_llava.model), method, **options)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 1
        model.save_pretrained(tmp_path)
        return tmp_path
    return save


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("method", METHODS)
def test_what_was_saved_comes_back(tiny_llava, folder, method):
    loaded = load_adapter(copy.deepcopy(tiny_llava.model), folder(method, connector="tuned"))
    assert not any(p.requires_grad for p in loaded.parameters())
    loaded = load_adapter(copy.deepcopy(tiny_llava.model), folder(method, connector="tuned"), trainable=True)
    trained = {name: p for name, p in loaded.named_parameters() if p.requires_grad}
    fresh = peftkit.inject(copy.deepcopy(tiny_llava.model), method, connector="tuned")
    started = {name: p for name, p in fresh.named_parameters() if p.requires_grad}
    assert trained.keys() == started.keys()
    assert all(torch.equal(trained[name], started[name] + 1) for name in trained)


@pytest.mark.parametrize("method, where", [("lora", "language"), ("adapter", "language"), ("connector", "connector")])
def test_an_adapter_for_another_base_names_regions_and_shapes(qwen2_vl, paligemma, tiny_idefics2, folder, method, where):
    made = folder(method)
    with pytest.raises(PeftkitError, match="does not fit this paligemma model|was made for another base") as error:
        load_adapter(copy.deepcopy(paligemma.model), made)
    if "another base" in str(error.value):
        assert f"{where}: " in str(error.value) and "the base asks for (" in str(error.value)


def test_a_smaller_base_is_told_by_its_shapes(tiny_llava, folder):
    made = folder("lora")
    edit(made, r=4)
    with pytest.raises(PeftkitError, match=r"language: .*lora_A.weight is \(8, \d+\), the base asks for \(4, \d+\)"):
        load_adapter(copy.deepcopy(tiny_llava.model), made)


def test_a_pattern_that_fits_nothing_here_is_named(t5, folder):
    with pytest.raises(PeftkitError, match="does not fit this t5 model"):
        load_adapter(copy.deepcopy(t5.model), folder("adapter"))


def test_unknown_settings_are_refused_where_peft_drops_them(tiny_llava, folder):
    made = folder("adapter")
    edit(made, depth=3)
    with pytest.raises(PeftkitError, match="unknown settings depth in .*adapter_config.json.*accepted: .*bottleneck"):
        load_adapter(copy.deepcopy(tiny_llava.model), made)


def test_an_unknown_type_lists_the_known(tiny_llava, folder):
    made = folder("adapter")
    edit(made, peft_type="COMPACTER")
    with pytest.raises(PeftkitError, match="unknown adapter type 'COMPACTER'.*accepted: .*ADALINK.*BOTTLENECK.*LORA"):
        load_adapter(copy.deepcopy(tiny_llava.model), made)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_that_lacks_a_file_is_named(tiny_llava, folder, missing):
    made = folder("lora")
    (made / missing).unlink()
    with pytest.raises(PeftkitError, match=f"has no {missing}; accepted: a folder into which save_pretrained"):
        load_adapter(copy.deepcopy(tiny_llava.model), made)


@pytest.mark.parametrize("method", ["lora", "adapter", "ia3", "adalink", "prefix", "side", "head"])
def test_the_stated_file_size_is_that_of_the_file(tiny_llava, folder, method):
    size = (folder(method) / "adapter_model.safetensors").stat().st_size
    stated = file_bytes(tiny_llava.model, method)
    assert stated <= size <= stated + 20_000  # names and shapes


def test_the_stated_size_of_a_sparse_difference_takes_half_as_changed(tiny_llava, tmp_path):
    model = peftkit.inject(copy.deepcopy(tiny_llava.model), "random-mask")
    with torch.no_grad():
        for _, parameter in ((n, p) for n, p in model.named_parameters() if p.requires_grad):
            parameter[: (len(parameter) + 1) // 2] += 1
    model.save_pretrained(tmp_path)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert abs(size - file_bytes(tiny_llava.model, "random-mask")) < 20_000
