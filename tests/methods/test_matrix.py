"""The matrix: every method on every architecture, from injection to a merged model, or refused with a reason."""
import copy
import re
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file
from torch import nn

import peftkit
from peftkit.errors import PeftkitError
from peftkit.methods import METHODS, load_adapter, rule_of, trainable_count
from peftkit.models.regions import architecture, region_of

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(peftkit.__file__).parents[1]
PROMPTS = ("prompt", "prefix-peft")
TOLERANCE = 1e-5
WORKER = """
import sys, peftkit, peft, torch, transformers
from pathlib import Path
for line in sys.stdin:
    folder = Path(line.strip())
    try:
        base = getattr(transformers, (folder / "class").read_text()).from_pretrained(folder.parent / "base").eval()
        model = peft.PeftModel.from_pretrained(base, folder).eval()
        torch.save(model, folder / "loaded.pt")
        print("ok", flush=True)
    except Exception as error:
        print(repr(error).replace(chr(10), " "), flush=True)
"""


@dataclass
class Cell:
    case: object
    method: str
    folder: Path
    connector: str = "frozen"

    def inject(self, seed=42):
        return peftkit.inject(copy.deepcopy(self.case.base), self.method, connector=self.connector, seed=seed).eval()

    @cached_property
    def model(self):
        return perturb(self.inject())

    @cached_property
    def inputs(self):
        return self.case.inputs(6, 6)

    def logits(self, model):
        with torch.no_grad():
            return self.case.logits(model, self.inputs)

    @cached_property
    def saved(self):
        self.model.save_pretrained(self.folder / "adapter")
        return self.folder / "adapter"


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def perturb(model, scale=0.05):
    generator = torch.Generator().manual_seed(1)
    for parameter in trained(model).values():
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def check_start(cell):
    assert (cell.logits(cell.inject()) - cell.logits(cell.case.base)).abs().max() == 0.0


def check_count(cell):
    assert sum(p.numel() for p in trained(cell.inject()).values()) == trainable_count(cell.case.base, cell.method)


def check_gradients(cell):
    arch = architecture(cell.case.base)
    model = copy.deepcopy(cell.model).train()
    cell.case.loss(model, cell.inputs).backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    regions = {"prefix" if name.startswith("prompt_encoder") else region_of(arch, name) for name in trained(model)}
    print("REGIONS", cell.method, cell.case.name, regions, METHODS[cell.method].regions)
    assert regions <= set(METHODS[cell.method].regions)
    assert got == set(trained(model)), (set(trained(model)) - got, got - set(trained(model)))


def check_disable(cell):
    assert not torch.equal(cell.logits(cell.model), cell.logits(cell.case.base))
    with cell.model.disable_adapter():
        assert torch.equal(cell.logits(cell.model), cell.logits(cell.case.base))


def check_file(cell):
    file = cell.saved / "adapter_model.safetensors"
    tensors = load_file(file)
    payload = sum(p.numel() * p.element_size() for p in trained(cell.model).values())
    names = {n.replace(".default", "") for n in trained(cell.model)}
    held = sum(t.numel() * t.element_size() for t in tensors.values())
    bits = sum(t.numel() for n, t in tensors.items() if n.endswith("_bits"))
    assert held - bits == payload, (held, bits, payload)
    assert {n.removesuffix("_bits").removesuffix("_values") for n in tensors} == names, (
        names ^ {n.removesuffix("_bits").removesuffix("_values") for n in tensors})
    assert file.stat().st_size <= held + 200 * (len(names) + 1)


def check_peft(cell):
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(cell.case.base), cell.saved).eval()
    assert torch.equal(cell.logits(loaded), cell.logits(cell.model))


def check_transformers(cell):
    loaded = copy.deepcopy(cell.case.base)
    loaded.load_adapter(str(cell.saved))
    assert torch.equal(cell.logits(loaded.eval()), cell.logits(cell.model))


def steps(cell, model, optimizer, rule, numbers):
    model.train()
    for number in numbers:
        cell.case.loss(model, cell.case.inputs(6, 6, seed=number)).backward()
        if rule:
            rule.after_backward()
        optimizer.step()
        if rule:
            rule.after_step()
        optimizer.zero_grad()


def start(model):
    return torch.optim.AdamW(trained(model).values(), lr=1e-2), rule_of(model)


def check_resume(cell):
    folder = cell.folder / "resumed"
    model = cell.inject()
    optimizer, rule = start(model)
    steps(cell, model, optimizer, rule, (1, 2))
    model.save_pretrained(folder)
    kept = copy.deepcopy((optimizer.state_dict(), rule and rule.state_dict()))
    steps(cell, model, optimizer, rule, (3, 4))
    if cell.method in PROMPTS:
        again = cell.inject()
        again.load_adapter(folder, "default", is_trainable=True)
    else:
        again = load_adapter(copy.deepcopy(cell.case.base), folder, trainable=True)
    optimizer2, rule2 = start(again)
    optimizer2.load_state_dict(kept[0])
    if rule2:
        rule2.load_state_dict(kept[1])
    steps(cell, again, optimizer2, rule2, (3, 4))
    assert same(dict(trained(model)), dict(trained(again)))
    assert same(optimizer.state_dict(), optimizer2.state_dict())
    assert same(rule and rule.state_dict(), rule2 and rule2.state_dict())


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def check_merge(cell):
    model = copy.deepcopy(cell.model)
    merged = model.merge_and_unload()
    assert (cell.logits(merged) - cell.logits(cell.model)).abs().max() <= TOLERANCE
    assert not [m for m in merged.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    assert dict(merged.named_parameters(remove_duplicate=False)).keys() == dict(
        cell.case.base.named_parameters(remove_duplicate=False)).keys()


def check_generation(cell):
    with torch.no_grad():
        new = cell.case.generated(cell.model, cell.inputs, 4)
        assert torch.equal(new, cell.case.decoded(cell.model, cell.inputs, 4)), (new, cell.case.decoded(cell.model, cell.inputs, 4))


def check_padding(cell):
    case, positions = cell.case, cell.method not in PROMPTS
    with torch.no_grad():
        alone = case.logits(cell.model, case.inputs(4, 4, positions=positions))[1]
        for side in ("right", "left"):
            padded = case.inputs(6, 4, side=side, positions=positions)
            out = case.logits(cell.model, padded)[1]
            if not case.decodes:
                out = out[padded["attention_mask"][1].bool()]
            diff = (out - alone).abs().max()
            assert diff <= TOLERANCE, (side, diff)


def check_status(cell):
    status = cell.model.get_model_status()
    kind = status.peft_types["default"]
    assert kind == cell.model.peft_config["default"].peft_type.value, kind


CHECKS = [v for k, v in list(globals().items()) if k.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("method", METHODS)
def test_explore(case, method, check, tmp_path):
    if case.name in METHODS[method].refuses:
        pytest.skip()
    check(Cell(case, method, tmp_path))


@pytest.mark.parametrize("check", [check_start, check_gradients, check_peft, check_merge, check_disable])
@pytest.mark.parametrize("method", METHODS)
def test_tuned(case, method, check, tmp_path):
    if case.name in METHODS[method].refuses:
        pytest.skip()
    check(Cell(case, method, tmp_path, "tuned"))
