"""Two processes, as `accelerate launch` starts them, train like one with the doubled batch."""
import copy
import dataclasses
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file, save_file

import peftkit
from peftkit import TrainConfig
from peftkit.data import encode
from peftkit.errors import PeftkitError
from peftkit.training import Checkpoints, parallel, train

pytestmark = pytest.mark.slow
BATCH, ROWS = 4, 25  # of a process; the last batch of an epoch has one row, so that the second process has none
ARMS = {  # method, options, training settings, questions a picture
    "lora": ("lora", {"connector": "tuned"}, {}, 1),
    "accumulation": ("lora", {}, {"accumulation": 3}, 1),
    "packed": ("prompt", {"connector": "tuned"}, {}, 3),
    "rule": ("spider", {}, {}, 1),
    "tower": ("full", {}, {"progress": True}, 1),  # trains parameters that take no part in the loss
}
SHARED_OUT = ("lora", "accumulation", "packed")  # tried under FSDP too
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
          "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


@cache
def base():
    return peftkit.load("tiny-llava-s")


@cache
def data(questions: int):
    """Captions of many lengths, or several questions a picture."""
    task = peftkit.task("vqav2" if questions > 1 else "flickr30k", train_size=ROWS, test_size=1, questions=questions)
    return encode(base().processor, task.train, task.prompt)


def trained(arm: str, batch_size: int, checkpoints=None, **more) -> dict[str, torch.Tensor]:
    """Losses, and how far every trained weight has moved."""
    method, options, settings, questions = ARMS[arm]
    model = peftkit.inject(copy.deepcopy(base().model), method, **options | more)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    config = TrainConfig(**{"epochs": 2, "batch_size": batch_size, "learning_rate": 2e-3, "progress": False} | settings)
    result = train(model, base().processor, dataclasses.replace(data(questions)), config, checkpoints=checkpoints)
    assert result.samples == 2 * ROWS
    return {"losses": torch.tensor(result.losses, dtype=torch.float64)} | {
        name: p.detach() - start[name] for name, p in model.named_parameters() if p.requires_grad}


# ---- what runs in each of the two processes --------------------------------------------------------------------------

def process(folder: str) -> None:
    torch.set_num_threads(1)
    found = {arm: trained(arm, BATCH) for arm in ARMS}
    found |= {"undisturbed": trained("lora", BATCH, dropout=0.3), "resumed": resumed(Path(folder, "checkpoints"))}
    share_out()
    found |= {f"FSDP {arm}": trained(arm, BATCH) for arm in SHARED_OUT}
    with pytest.raises(PeftkitError, match="selective methods train copies of whole tensors"):
        trained("rule", BATCH)
    with pytest.raises(PeftkitError, match="checkpoints of a run under FSDP are not written"):
        trained("lora", BATCH, folder)
    tensors = {f"{run}/{name}": value.contiguous() for run, values in found.items() for name, value in values.items()}
    save_file(tensors, Path(folder, f"{PartialState().process_index}.safetensors"))


def resumed(folder: Path) -> dict[str, torch.Tensor]:
    """A run that ends with an error in its fifth step, and goes on."""
    settings, step, steps = Checkpoints(folder, minutes=0), torch.optim.AdamW.step, []

    def failing(*args, **kwargs):
        steps.append(1)
        if len(steps) == 5:
            raise InterruptedError
        return step(*args, **kwargs)

    torch.optim.AdamW.step = failing
    with pytest.raises(InterruptedError):
        trained("lora", BATCH, settings, dropout=0.3)
    found = trained("lora", BATCH, settings, dropout=0.3)
    assert len(steps) == 5 + 4
    torch.optim.AdamW.step = step
    return found


def share_out() -> None:
    """Make accelerate believe in FSDP on the CPU: by itself it uses DDP there, whatever it was told."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}


# ---- what is compared ------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What each process found, run -> name -> tensor, and what both printed."""
    folder = tmp_path_factory.mktemp("launched")
    script = folder / "script.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
                      f"import test_parallel\ntest_parallel.process({str(folder)!r})\n")
    environment = os.environ | {"PYTHONPATH": str(Path(peftkit.__file__).parents[1]), "ACCELERATE_USE_CPU": "true",
                                "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *LAUNCH, script], env=environment, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    return [_by_run(load_file(folder / f"{process}.safetensors")) for process in range(2)], done


def _by_run(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict] = {}
    for key, value in tensors.items():
        run, _, name = key.partition("/")
        found.setdefault(run, {})[name] = value
    return found


def together(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten() for name, value in sorted(weights.items()) if name != "losses"])


@pytest.mark.parametrize("run", [*ARMS, *(f"FSDP {arm}" for arm in SHARED_OUT)])
def test_two_processes_train_like_one_with_the_doubled_batch(launched, run):
    (ours, _), _ = launched
    plain = trained(run.removeprefix("FSDP "), 2 * BATCH)
    assert torch.allclose(ours[run]["losses"], plain["losses"], rtol=0, atol=1e-4)
    assert (together(ours[run]) - together(plain)).norm() < 1e-3 * together(plain).norm()


def test_both_processes_have_the_same_losses_and_weights(launched):
    (first, second), _ = launched
    for run, values in first.items():
        assert all(torch.equal(values[name], second[run][name]) for name in values), run


def test_a_run_of_two_processes_resumes_bit_for_bit(launched):
    (ours, _), _ = launched
    assert all(torch.equal(value, ours["resumed"][name]) for name, value in ours["undisturbed"].items())


def test_only_the_main_process_prints(launched):
    _, done = launched
    assert sum(line.startswith("language ") for line in done.stdout.splitlines()) == 1
    assert done.stderr.count("training:   0%") == 1


@pytest.mark.parametrize("rows", [[3, 1, 4], [2, 0], [4]])
def test_the_parts_of_a_batch_make_up_the_batch(rows):
    encoded = SimpleNamespace(answers=[[7] * length for length in (3, 1, 4, 1, 5)])
    parts = [parallel.Parts(encoded, list, SimpleNamespace(process_index=process, num_processes=2))(rows) for process in (0, 1)]
    seen = [row for part in parts if part.tokens for row in part.batch]
    assert seen == rows and all(part.batch for part in parts)
    assert sum(part.tokens for part in parts) == sum(len(encoded.answers[row]) for row in rows)
    assert {(part.all_tokens, part.all_rows) for part in parts} == {(sum(part.tokens for part in parts), len(rows))}


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.FSDP])
def test_deepspeed_and_the_first_fsdp_are_refused(monkeypatch, kind):
    monkeypatch.setattr(parallel, "Accelerator", lambda **_: SimpleNamespace(distributed_type=kind, is_fsdp2=False))
    with pytest.raises(PeftkitError, match=f"told to use {kind.value}; accepted: DDP, or FSDP with --fsdp_version 2"):
        parallel.start(unused=False)
