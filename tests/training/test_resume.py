"""Checkpoints: a run that is killed, wherever it is, ends as if it had not been."""
import copy
import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import peftkit
from peftkit import TrainConfig
from peftkit.data import encode
from peftkit.errors import PeftkitError
from peftkit.training import Checkpoints, checkpoint, loop, train

STEPS = 8  # four an epoch, the last of which has one batch instead of two
CONFIG = TrainConfig(epochs=2, batch_size=4, accumulation=2, learning_rate=5e-3, progress=False)
ARMS = {"lora": {"dropout": 0.2, "connector": "tuned"}, "adapter": {"dropout": 0.2}, "spider": {}, "prompt": {},
        "half": {"steps_a_round": 3}, "random-mask": {}}


class Killed(Exception):
    """Stands for a kill: nothing in the package catches it."""


@pytest.fixture(scope="module")
def rows(tiny_llava):
    task = peftkit.task("vqav2", train_size=28, validation_size=1, test_size=1)
    return encode(tiny_llava.processor, task.train, task.prompt)


@pytest.fixture
def run(tiny_llava, rows, monkeypatch):
    """run(method, checkpoints, config, kill): train a fresh copy; what came out, or None if killed in step `kill`."""
    step = torch.optim.AdamW.step

    def one(method="lora", checkpoints=None, config=CONFIG, kill=None):
        rules, left = [], itertools.count(1)

        def counted(*args, **kwargs):
            if next(left) == kill:
                raise Killed
            return step(*args, **kwargs)

        monkeypatch.setattr(torch.optim.AdamW, "step", counted)
        monkeypatch.setattr(loop, "rule_of", lambda *args: rules.append(peftkit.methods.rule_of(*args)) or rules[-1])
        torch.manual_seed(kill or 0)  # what the process drew before must not matter
        model = peftkit.inject(copy.deepcopy(tiny_llava.model), method, **ARMS[method])
        try:
            result = train(model, tiny_llava.processor, dataclasses.replace(rows), config, checkpoints=checkpoints)
        except Killed:
            return None
        weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        masks = rules[0].state_dict() if rules[0] else {}
        return SimpleNamespace(result=result, weights=weights, masks=masks, took=next(left) - 1)

    return one


@pytest.fixture
def every_third(monkeypatch):
    """A clock that goes on by a minute whenever it is read: with minutes=3, every third step writes a checkpoint."""
    clock = itertools.count()
    patched = SimpleNamespace(monotonic=lambda: 60 * next(clock), perf_counter=time.perf_counter)
    monkeypatch.setattr(checkpoint, "time", patched)


def files(folder) -> list[str]:
    return sorted(path.name for path in Path(folder).rglob("*") if path.is_file())


def assert_equal(ours, plain):
    assert ours.result.losses == plain.result.losses
    assert (ours.result.steps, ours.result.samples) == (plain.result.steps, plain.result.samples) == (STEPS, 56)
    for some, others in ((ours.weights, plain.weights), (ours.masks, plain.masks)):
        assert some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


# ---- killed and resumed ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", ARMS)
def test_a_run_that_is_killed_three_times_ends_bit_for_bit_like_one_that_is_not(run, method, tmp_path, every_third):
    settings, plain = Checkpoints(tmp_path, minutes=3), run(method)
    assert run(method, settings, kill=2) is None and files(tmp_path) == []
    assert run(method, settings, kill=6) is None and files(tmp_path) == ["00000003.safetensors"]
    assert run(method, settings, kill=5) is None and files(tmp_path) == ["00000003.safetensors", "00000006.safetensors"]
    ours = run(method, settings)
    assert ours.took == 2 and plain.took == STEPS
    assert_equal(ours, plain)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("step", [4, 5, STEPS])  # within an epoch, in the first of the second, in the last
def test_a_checkpoint_can_lie_anywhere_in_the_data(run, tmp_path, step):
    settings, plain = Checkpoints(tmp_path, minutes=0), run()
    assert run(checkpoints=settings, kill=step) is None
    ours = run(checkpoints=settings)
    assert ours.took == STEPS - step + 1
    assert_equal(ours, plain)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_the_schedule_goes_on(run, tmp_path, schedule):
    config = dataclasses.replace(CONFIG, schedule=schedule, warmup_ratio=0.5)
    settings, plain = Checkpoints(tmp_path, minutes=0), run(config=config)
    assert run("lora", settings, config, kill=4) is None
    assert_equal(run("lora", settings, config), plain)


SCRIPT = """
import os, signal, sys, torch, peftkit
from pathlib import Path
from peftkit.training import Checkpoints, checkpoint
sys.path.insert(0, {tests!r})
from test_resume import bundled_run

torch.set_num_threads(1)
save = checkpoint.save_file

def killed_in_the_third(tensors, path, header):
    if path.name.startswith("00000003"):
        (path.parent / ".tmpkilled").write_bytes(bytes(1000))  # what safetensors leaves: it renames when complete
        os.kill(os.getpid(), signal.SIGKILL)
    save(tensors, path, header)

checkpoint.save_file = killed_in_the_third
bundled_run(Checkpoints({folder!r}, minutes=0))
"""


def bundled_run(checkpoints=None):
    """Losses and weights of a run that every process starts alike."""
    base = peftkit.load("tiny-llava-s")
    task = peftkit.task("vqav2", train_size=28, validation_size=1, test_size=1)
    model = peftkit.inject(base.model, "lora", dropout=0.2)
    result = train(model, base.processor, task.train, CONFIG, prompt=task.prompt, checkpoints=checkpoints)
    return result.losses, [p.detach() for p in model.parameters() if p.requires_grad]


def test_a_process_that_is_killed_while_it_writes_goes_on_from_the_checkpoint_before(tmp_path):
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    environment = os.environ | {"PYTHONPATH": str(Path(peftkit.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert files(tmp_path) == [".tmpkilled", "00000001.safetensors", "00000002.safetensors"]
    (losses, weights), (plain_losses, plain) = bundled_run(tmp_path), bundled_run()
    assert losses == plain_losses and all(map(torch.equal, weights, plain))
    assert files(tmp_path) == []


# ---- what is found in the folder -------------------------------------------------------------------------------------

@pytest.mark.parametrize("damaged, left", [(1, ["00000004.safetensors"]), (2, [])])
def test_a_truncated_checkpoint_is_reported_and_the_one_before_is_used(run, tmp_path, damaged, left):
    settings, plain = Checkpoints(tmp_path, minutes=0), run()
    assert run(checkpoints=settings, kill=6) is None
    for path in sorted(tmp_path.rglob("*.safetensors"))[-damaged:]:
        os.truncate(path, path.stat().st_size - 1)
    with pytest.warns(UserWarning, match=r"damaged checkpoint removed, .*0000000[45]\.safetensors"):
        assert run(checkpoints=settings, kill=1) is None
    assert files(tmp_path) == left
    ours = run(checkpoints=settings)
    assert ours.took == (4 if left else STEPS)
    assert_equal(ours, plain)


@pytest.mark.parametrize("change, method, named", [
    ({"learning_rate": 1e-3}, "lora", "configuration"), ({}, "adapter", "model"),
    ({"seed": 7}, "prompt", "configuration and model")])
def test_another_runs_checkpoint_is_reported_and_left_alone(run, tmp_path, change, method, named):
    settings, config = Checkpoints(tmp_path, minutes=0), dataclasses.replace(CONFIG, **change)
    assert run(checkpoints=settings, kill=3) is None
    with pytest.warns(UserWarning, match=f"at its beginning: .* is of another run, with other {named},"):
        ours = run(method, settings, config)
    assert ours.took == STEPS and files(tmp_path) == ["00000001.safetensors", "00000002.safetensors"]


def test_identity_names_configuration_data_and_model(tiny_llava, rows):
    def parts(model=tiny_llava.model, data=rows, config=CONFIG, processes=1, **options):
        return checkpoint.identity(peftkit.inject(copy.deepcopy(model), "lora", **options), data, config, processes)

    def different(**changes) -> set[str]:
        mine, its = parts(), parts(**changes)
        return {name for name in mine if mine[name] != its[name]}

    other = copy.deepcopy(tiny_llava.model)
    other.get_input_embeddings().weight.data[0, 0] += 1
    assert different() == different(config=dataclasses.replace(CONFIG, progress=True)) == set()
    assert different(config=dataclasses.replace(CONFIG, epochs=3)) == different(processes=2) == {"configuration"}
    assert different(data=dataclasses.replace(rows, answers=rows.answers[::-1])) == {"data"}
    assert different(data=dataclasses.replace(rows, picture_ids=rows.picture_ids[::-1])) == {"data"}
    assert different(alpha=3) == different(rank=2) == different(model=other) == {"model"}


def test_checkpoints_that_are_kept_give_the_finished_run_again(run, tmp_path):
    settings = Checkpoints(tmp_path, minutes=0, keep=True)
    first = run("spider", settings)
    again = run("spider", settings)
    assert (first.took, again.took) == (STEPS, 0)
    assert_equal(again, first)
    assert again.result.seconds > first.result.seconds / 10


def test_a_short_run_writes_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "save_file", None)
    assert run(checkpoints=tmp_path).took == STEPS and files(tmp_path) == []


def test_a_full_disk_is_reported_and_the_run_goes_on(run, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    plain = run()
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.warns(UserWarning, match="no checkpoint after step .*, the run goes on: .*No space left on device"):
        ours = run(checkpoints=Checkpoints(tmp_path, minutes=0))
    assert_equal(ours, plain)


def test_an_interval_below_zero_is_refused(tmp_path):
    with pytest.raises(PeftkitError, match="minutes is -1; accepted: 0 or more"):
        Checkpoints(tmp_path, minutes=-1)
