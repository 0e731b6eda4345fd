"""The matrix: every method on every architecture, from injection to the merged model, or a refusal with its reason.

A cell runs every check; what cannot work is written in the tables of matrix.py, and everything else must work. pytest
prints the matrix at the end of the run.
"""
import copy
import re
import sys
from contextlib import nullcontext

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file

import peftkit
from peftkit.errors import PeftkitError
from peftkit.methods import METHODS, load_adapter, trainable_count
from peftkit.models.regions import architecture, region_of

from .matrix import LIMITS, PROMPTS, UNUSED, Cell, Run, expected_regions, limits, perturbed, refusal, same, trained

pytestmark = pytest.mark.filterwarnings("ignore")  # what peft and transformers say of calls that they make themselves
TOLERANCE = 1e-5  # of logits, where another order of additions may round otherwise; of the largest, above 1


def assert_close(found, expected):
    """Equal to 1e-5, or to 1e-5 of the largest logit: T5's reach 20, where a float32 rounds at 1e-6."""
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * max(1.0, expected.abs().max().item()))


# ---- checks ----------------------------------------------------------------------------------------------------------

def start(cell):
    change = (cell.logits(cell.new) - cell.logits(cell.case.base)).abs().max().item()
    assert change == 0.0, f"a new {cell.method} moves the logits by {change}"


def size(cell):
    assert sum(p.numel() for p in trained(cell.new).values()) == trainable_count(cell.case.base, cell.method)


def gradients(cell):
    model, arch = copy.deepcopy(cell.model).train(), architecture(cell.case.base)
    names = set(trained(model))
    regions = {"prefix" if name.startswith("prompt_encoder.") else region_of(arch, name) for name in names}
    assert regions == expected_regions(cell)
    cell.case.loss(model, cell.inputs).backward()
    received = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    if (cell.method, cell.case.name) == ("full", "llava"):
        assert (unused := {name for name in names - received if re.search(UNUSED, name)})
        names -= unused
    assert received == names


def disabling(cell):
    base = cell.logits(cell.case.base)
    assert not torch.equal(cell.expected, base)
    with cell.model.disable_adapter():
        assert torch.equal(cell.logits(cell.model), base), "a disabled method is not the base"
    assert torch.equal(cell.logits(cell.model), cell.expected)


def padding(cell):
    case, positions = cell.case, cell.method not in PROMPTS
    alone = case.logits(cell.model, case.inputs(4, 4, positions=positions))[1]
    for side in ("right", "left"):
        inputs = case.inputs(6, 4, side=side, positions=positions)
        beside = case.logits(cell.model, inputs)[1]
        real = beside if case.decodes else beside[inputs["attention_mask"][1].bool()]
        change = (real - alone).abs().max().item()
        assert change <= TOLERANCE, f"padding on the {side} moves the logits by {change}"


def generation(cell):
    cached, logits = cell.case.generated(cell.model, cell.inputs, tokens=4)
    by_hand, expected = cell.case.decoded(cell.model, cell.inputs, tokens=4)
    assert torch.equal(cached, by_hand)
    assert_close(logits, expected)


def status(cell):
    assert cell.model.get_model_status().peft_types == {"default": cell.model.peft_config["default"].peft_type.value}


def saving(cell):
    file = cell.saved / "adapter_model.safetensors"
    tensors, parameters = load_file(file), trained(cell.model)
    names = {re.sub(r"(_bits|_values)$", "", name) for name in tensors}
    assert names == {_name_in_file(name) for name in parameters}
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    bits = sum(t.numel() for name, t in tensors.items() if name.endswith("_bits"))
    assert size - bits == sum(p.numel() * p.element_size() for p in parameters.values())
    assert bits in (0, sum(-(-p.numel() // 8) for p in parameters.values()))
    assert file.stat().st_size <= size + 300 * (len(tensors) + 1)  # names, shapes and offsets


def _name_in_file(name):
    if name.startswith("prompt_encoder."):
        return "prompt_embeddings"
    return re.sub(r"(\.modules_to_save)?\.default", "", name).replace("magnitude_vector.weight", "magnitude_vector")


def reloading(cell):
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(cell.case.base), cell.saved).eval()
    assert torch.equal(cell.logits(loaded), cell.expected)


def fresh_process(cell):
    assert torch.equal(cell.fresh_process.logits(cell.case, cell.saved)[:, -cell.expected.shape[1]:], cell.expected)


def transformers(cell):
    model = copy.deepcopy(cell.case.base)
    model.load_adapter(str(cell.saved))
    assert torch.equal(cell.logits(model.eval()), cell.expected), "transformers gives other logits"


def resuming(cell):
    run = Run(cell.case, copy.deepcopy(cell.new))
    run.steps(1, 2)
    run.model.save_pretrained(cell.folder / "halfway")
    state = copy.deepcopy(run.state())
    run.steps(3, 4)
    if cell.method in PROMPTS:  # peft refuses is_trainable; Trainer loads into the live model, too
        model = perturbed(cell.new)
        model.load_adapter(cell.folder / "halfway", "default", is_trainable=True)
    else:
        model = load_adapter(copy.deepcopy(cell.case.base), cell.folder / "halfway", trainable=True)
    again = Run(cell.case, model)
    again.load(state)
    again.steps(3, 4)
    assert same(trained(run.model), trained(again.model)) and same(run.state(), again.state())


def merging(cell):
    model = copy.deepcopy(cell.model)
    if not METHODS[cell.method].merges and cell.method not in PROMPTS:
        with pytest.raises((ValueError, NotImplementedError), match="cannot be merged: ."):
            model.merge_and_unload()
        return
    merged = model.merge_and_unload()
    assert_close(cell.logits(merged), cell.expected)
    assert not [name for name, module in merged.named_modules()
                if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    names, fresh = (dict(m.named_parameters(remove_duplicate=False)).keys() for m in (merged, cell.case.base))
    assert names == fresh


# ---- cells -----------------------------------------------------------------------------------------------------------

CHECKS = (start, size, gradients, disabling, padding, generation, status, saving, reloading, fresh_process,
          transformers, resuming, merging)
TUNED_CHECKS = (start, gradients, disabling, saving, reloading, merging)


def run_checks(cell, checks):
    """Run all checks, those with a limit must fail; return the limits. Raises all errors at once."""
    known, errors = limits(cell), []
    for check in checks:
        limit = known.get(check.__name__)
        try:
            with pytest.raises(limit.error, match=limit.match) if limit else nullcontext():
                check(cell)
        except (Exception, pytest.fail.Exception) as error:
            error.add_note(f"in the check {check.__name__}" + (f", whose limit is: {limit.note}" if limit else ""))
            errors.append(error)
    if errors:
        raise BaseExceptionGroup(f"{cell.method} on {cell.case.name}, connector {cell.connector}", errors)
    return [known[check.__name__] for check in checks if check.__name__ in known]


def refuse(cell, words):
    """`inject` names the reason and leaves the model as it was."""
    model = copy.deepcopy(cell.case.base)
    with pytest.raises(PeftkitError, match=f"{re.escape(words)}.*accepted"):
        peftkit.inject(model, cell.method, connector=cell.connector)
    assert same(model.state_dict(), cell.case.base.state_dict()) and len(trained(model)) == len(trained(cell.case.base))


def judge(cell, checks, matrix):
    place = f"connector {cell.connector}", cell.method, cell.case.name
    matrix(*place, "FAILED")
    words = refusal(cell)
    if words:
        refuse(cell, words)
        matrix(*place, f"no: {words}")
    else:
        matrix(*place, "ok", [limit.note for limit in run_checks(cell, checks)])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_works_on_every_architecture_or_says_why_not(case, method, fresh_process, tmp_path, matrix):
    judge(Cell(case, method, tmp_path, fresh_process), CHECKS, matrix)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_along_a_tuned_connector_or_says_why_not(case, method, tmp_path, matrix):
    judge(Cell(case, method, tmp_path, None, "tuned"), TUNED_CHECKS, matrix)


def test_blip_itself_depends_on_padding(case, tmp_path):
    cell = Cell(case, "base", tmp_path, None)
    cell.model = case.base
    with pytest.raises(AssertionError, match="padding on the right") if case.name == "blip" else nullcontext():
        padding(cell)


@pytest.mark.parametrize("limit", [limit for limit in LIMITS if limit.stated], ids=lambda limit: limit.note)
def test_a_limit_is_stated_where_its_method_is_described(limit):
    for method in limit.methods:
        text = sys.modules[METHODS[method].peft_config.__module__].__doc__
        assert limit.stated in " ".join(text.lower().split())
