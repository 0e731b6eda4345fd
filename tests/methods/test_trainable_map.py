"""The trainable map counts every parameter once, in its region."""
import copy

import pytest
import torch

import peftkit
from peftkit.errors import PeftkitError
from peftkit.methods import trainable_count

COLUMNS = ["tensors", "trainable", "total", "dtype", "share"]


def test_a_base_trains_everywhere_and_counts_all(tiny_llava):
    regions = peftkit.trainable_map(tiny_llava.model)
    assert list(regions.index) == ["vision", "connector", "language", "head"] and list(regions.columns) == COLUMNS
    assert regions["total"].sum() == sum(p.numel() for p in tiny_llava.model.parameters())
    assert (regions["share"] == 1).all() and (regions["dtype"] == "float32").all()


@pytest.mark.parametrize("base", ["tiny_llava", "tiny_idefics2"])
@pytest.mark.parametrize("connector", ["frozen", "tuned"])
def test_an_injected_model_adds_to_the_language_region_only(request, base, connector):
    model = copy.deepcopy(request.getfixturevalue(base).model)
    before = peftkit.trainable_map(model)
    after = peftkit.trainable_map(peftkit.inject(model, "lora", connector=connector))
    added = after.loc["language", "trainable"]
    assert after.loc["language", "total"] == before.loc["language", "total"] + added
    others = ["vision", "connector", "head"]
    assert (after.loc[others, "total"] == before.loc[others, "total"]).all()
    assert (after.loc[["vision", "head"], ["tensors", "trainable"]] == 0).all(axis=None)
    assert after.loc["connector", "trainable"] == (before.loc["connector", "total"] if connector == "tuned" else 0)


def test_virtual_tokens_have_a_row_of_their_own(tiny_llava):
    regions = peftkit.trainable_map(peftkit.inject(copy.deepcopy(tiny_llava.model), "prefix-peft", tokens=5))
    size = tiny_llava.model.config.text_config
    assert regions.loc["prefix", "trainable"] == 5 * size.num_hidden_layers * 2 * size.hidden_size
    assert regions.loc["language", "trainable"] == 0


@pytest.mark.parametrize("method", ["full", "language", "connector", "head", "spider"])
def test_a_trained_copy_counts_in_the_place_of_the_original(tiny_llava, method):
    before = peftkit.trainable_map(tiny_llava.model)
    after = peftkit.trainable_map(peftkit.inject(copy.deepcopy(tiny_llava.model), method))
    assert (after["total"] == before["total"]).all()
    assert after["trainable"].sum() == trainable_count(tiny_llava.model, method)


def test_a_tied_embedding_stays_in_use_when_the_head_alone_is_trained(paligemma):
    before = peftkit.trainable_map(paligemma.model)
    after = peftkit.trainable_map(peftkit.inject(copy.deepcopy(paligemma.model), "head"))
    assert after.loc["language", "total"] == before.loc["language", "total"]
    assert after.loc["head", "trainable"] == paligemma.model.lm_head.weight.numel()


def test_the_dtype_is_that_of_what_is_trained(tiny_llava):
    model = copy.deepcopy(tiny_llava.model).to(torch.bfloat16)
    assert peftkit.trainable_map(model).loc["language", "dtype"] == "bfloat16"
    regions = peftkit.trainable_map(peftkit.inject(model, "lora"))
    assert regions.loc["language", "dtype"] == "float32" and regions.loc["vision", "dtype"] == ""


def test_an_unsupported_model_type_is_named():
    model = torch.nn.Linear(1, 1)
    model.config = type("Config", (), {"model_type": "llama"})()
    with pytest.raises(PeftkitError, match="unknown model type 'llama'; did you mean 'llava'"):
        peftkit.trainable_map(model)
