"""Zhou 2024's parameter counts, from a LLaVA-1.5-7B configuration built without weights."""
import pytest
import torch

import peftkit
from peftkit.methods import trainable_count
from peftkit.methods.method import Dimensions, dimensions
from peftkit.papers.zhou2024.shares import llava_7b

SIZES = {  # the paper's sizes: rank 128, bottleneck 256, 20 virtual tokens
    "lora": {"rank": 128}, "adapter": {"bottleneck": 256, "placement": "mlp"}, "ia3": {}, "prefix-peft": {"tokens": 20}}
COUNTS_7B = {"lora": 319_815_680, "adapter": 201_326_592, "ia3": 614_400, "prefix-peft": 5_242_880}
COUNTS_13B = {"lora": 500_695_040, "adapter": 314_572_800, "ia3": 962_560, "prefix-peft": 8_192_000}
CONNECTOR = 20_979_712
# Table 15, trainable parameters in percent with the connector frozen and tuned
SHARES_7B = {"lora": (4.332, 4.616), "adapter": (2.771, 3.060), "ia3": (0.009, 0.306), "prefix-peft": (0.074, 0.371)}
LLAMA_13B = Dimensions(width=5120, query=5120, key_value=5120, mlp=13824, attentions=40, mlps=40)


@pytest.fixture(scope="module", params=SIZES)
def injected(request):
    """Per method: its name, its formula's count on the base, and the trainable map with the connector tuned."""
    method = request.param
    with torch.device("meta"):
        base = llava_7b()
        counted = trainable_count(base, method, **SIZES[method])
        model = peftkit.inject(base, method, connector="tuned", **SIZES[method])
        return method, counted, peftkit.trainable_map(model)


def test_the_formula_gives_the_published_count(injected):
    method, counted, _ = injected
    assert counted == COUNTS_7B[method]


def test_the_modules_hold_the_published_count(injected):
    method, _, regions = injected
    assert regions.loc["connector", "trainable"] == CONNECTOR
    assert regions.drop(index="connector")["trainable"].sum() == COUNTS_7B[method]


def test_the_shares_are_those_of_table_15(injected):
    method, _, regions = injected
    total, trained = regions["total"].sum(), regions["trainable"].sum()
    shares = tuple(round(100 * part / total, 3) for part in (trained - CONNECTOR, trained))
    assert shares == SHARES_7B[method]


@pytest.mark.parametrize("method", SIZES)
def test_the_13b_counts_follow_from_the_formula(method):
    assert trainable_count(LLAMA_13B, method, **SIZES[method]) == COUNTS_13B[method]


def test_the_sizes_are_read_from_the_configuration():
    with torch.device("meta"):
        assert dimensions(llava_7b()) == Dimensions(
            width=4096, query=4096, key_value=4096, mlp=11008, attentions=32, mlps=32)
