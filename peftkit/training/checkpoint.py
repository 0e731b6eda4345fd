"""Checkpoints: what a run that was killed needs to go on as if nothing had happened.

    <folder>/<run>/00000120.safetensors    after 120 optimizer steps; the last two are kept
    <folder>/<run>/.tmp<random>            one while safetensors writes it; renamed when complete

<run> is a hash of configuration, data, model and number of processes, so runs may share a folder. A file holds tensors
(weights/..., buffers/..., optimizer/..., rule/..., losses) and, as JSON in its header, numbers and random states.
"""
import hashlib
import json
import random
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..data import Encoded
from ..errors import PeftkitError
from ..methods.selective.rule import Rule
from .config import TrainConfig
from .parallel import is_sharded

KEPT = 2
DAMAGE = (SafetensorError, OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Checkpoints:
    """folder: a shared one, if processes are on several machines; minutes: between checkpoints, 0 for one after every
    step; keep: leave the last ones when the run has finished, for who evaluates it first and removes them then."""

    folder: str | Path
    minutes: float = 1.0
    keep: bool = False

    def __post_init__(self):
        if not self.minutes >= 0:
            raise PeftkitError(f"minutes is {self.minutes!r}; accepted: 0 or more")


@dataclass
class State:
    """All that a run changes. losses: one an optimizer step; samples: rows seen; seconds: of training, before `since`
    (on the clock of `time.perf_counter`)."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    rule: Rule | None
    losses: list[float] = field(default_factory=list)
    samples: int = 0
    seconds: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def elapsed(self) -> float:
        """Seconds of training so far."""
        return self.seconds + time.perf_counter() - self.since

    def tensors(self) -> dict[str, Tensor]:
        """Copies, on the CPU, of all tensors by name."""
        moments = self.optimizer.state_dict()["state"].items()
        found = {f"optimizer/{number}/{name}": value for number, held in moments for name, value in held.items()}
        found |= {f"rule/{name}": value for name, value in (self.rule.state_dict() if self.rule else {}).items()}
        found |= _changing(self.model) | {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in found.items()}

    def numbers(self) -> dict:
        """The rest, for JSON."""
        return {"samples": self.samples, "seconds": self.elapsed(), "schedule": self.schedule.state_dict()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], numbers: dict) -> None:
        """Put back what `tensors` and `numbers` gave, in place."""
        for name, value in _changing(self.model).items():
            value.copy_(tensors[name])
        if self.rule:
            self.rule.load_state_dict(_below("rule", tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _below("optimizer", tensors).items():
            number, _, name = name.partition("/")
            moments.setdefault(int(number), {})[name] = value
        self.schedule.load_state_dict(numbers["schedule"])
        groups = self.optimizer.state_dict()["param_groups"]
        for group, rate in zip(groups, self.schedule.get_last_lr()):
            group["lr"] = rate
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.losses, self.samples = tensors["losses"].tolist(), numbers["samples"]
        self.seconds, self.since = numbers["seconds"], time.perf_counter()


@contextmanager
def resumed(state: State, settings: Checkpoints | str | Path | None, encoded: Encoded, config: TrainConfig,
            accelerator: Accelerator) -> Iterator[Callable[[], None]]:
    """Inside, `state` is as the newest checkpoint of this run has it; yields what is to be called after every step."""
    if settings is None:
        yield lambda: None
        return
    if is_sharded(accelerator):
        raise PeftkitError("checkpoints of a run under FSDP are not written; accepted: DDP, or checkpoints=None")
    settings = settings if isinstance(settings, Checkpoints) else Checkpoints(settings)
    saver = _Saver(settings, identity(state.model, encoded, config, accelerator.num_processes), accelerator)
    saver.restore(state)
    yield lambda: saver.after_step(state)
    saver.finish()


class _Saver:
    """The checkpoints of one run."""

    def __init__(self, settings: Checkpoints, run: dict[str, str], accelerator: Accelerator):
        self.settings, self.run, self.accelerator = settings, run, accelerator
        self.folder, self.written = Path(settings.folder, _hash(run)), time.monotonic()

    def restore(self, state: State) -> None:
        """Go on from the newest checkpoint that is whole, if there is one; damaged ones are reported and removed."""
        path = self._together(self._newest)
        if path:
            tensors, numbers = _read(path)
            state.load(tensors, numbers)
            set_random_state(numbers["random"][self.accelerator.process_index])

    def after_step(self, state: State) -> None:
        """Write a checkpoint if it is time; a disk that is full is reported, and the run goes on."""
        if not self._together(lambda: time.monotonic() - self.written >= 60 * self.settings.minutes):
            return
        states = gather_object([random_state()])
        if self.accelerator.is_main_process:
            self._write(state.tensors(), state.numbers() | {"random": states, "run": self.run}, len(state.losses))
        self.written = time.monotonic()

    def finish(self) -> None:
        """Remove the run's checkpoints, unless they are to be kept."""
        if self.accelerator.is_main_process and not self.settings.keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _together(self, decide: Callable):
        """What the main process decides."""
        if self.accelerator.num_processes == 1:
            return decide()
        return broadcast_object_list([decide() if self.accelerator.is_main_process else None])[0]

    def _newest(self) -> Path | None:
        for path in sorted(self.folder.glob("[!.]*"), reverse=True):
            try:
                _read(path)
                return path
            except DAMAGE as error:
                warnings.warn(f"damaged checkpoint removed, an older one or the start takes its place: {path}: {error}")
                path.unlink(missing_ok=True)
        self._report_others()

    def _report_others(self) -> None:
        for path in sorted(self.folder.parent.glob("*/[!.]*")):
            with suppress(*DAMAGE), safe_open(path, "pt") as file:
                its = _numbers(file)["run"]
                differs = " and ".join(part for part, value in self.run.items() if its.get(part) != value)
                warnings.warn(f"the run starts at its beginning: {path.parent} is of another run, with other {differs}, "
                              "and stays where it is")
                return

    def _write(self, tensors: dict[str, Tensor], numbers: dict, steps: int) -> None:
        path = self.folder / f"{steps:08d}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path, {"numbers": json.dumps(numbers, default=np.ndarray.tolist)})
        except (OSError, SafetensorError) as error:
            warnings.warn(f"no checkpoint after step {steps}, the run goes on: {path} cannot be written ({error})")
        for draft in self.folder.glob(".*"):  # of a process that was killed
            draft.unlink()
        for old in sorted(self.folder.glob("[!.]*"))[:-KEPT]:
            old.unlink()


def identity(model: nn.Module, encoded: Encoded, config: TrainConfig, processes: int) -> dict[str, str]:
    """What makes a run this run, a hash each: its configuration, data and model (of frozen weights, a few values)."""
    settings = asdict(config)
    del settings["progress"]
    methods = {name: config.to_dict() for name, config in getattr(model, "peft_config", {}).items()}
    weights = [(name, p.shape, str(p.dtype), None if p.requires_grad else p.detach().flatten()[:4].tolist())
               for name, p in model.named_parameters()]
    parts = {"configuration": (settings, processes), "model": (methods, weights),
             "data": (encoded.prompts, encoded.answers, encoded.picture_ids)}
    return {name: _hash(content) for name, content in parts.items()}


def _changing(model: nn.Module) -> dict[str, Tensor]:
    """What training may change: trainable weights, and buffers, which are small."""
    weights = {f"weights/{name}": p for name, p in model.named_parameters() if p.requires_grad}
    return weights | {f"buffers/{name}": buffer for name, buffer in model.named_buffers()}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}/"): value for name, value in tensors.items() if name.startswith(f"{prefix}/")}


def _read(path: Path) -> tuple[dict[str, Tensor], dict]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _numbers(file)


def _numbers(file: safe_open) -> dict:
    return json.loads(file.metadata()["numbers"])


def random_state() -> dict:
    """The states of all generators of this process, for JSON."""
    cuda = torch.cuda.get_rng_state().tolist() if torch.cuda.is_initialized() else None
    return {"python": random.getstate(), "numpy": np.random.get_state(legacy=False),
            "torch": torch.get_rng_state().tolist(), "cuda": cuda}


def set_random_state(state: dict) -> None:
    """Put back what `random_state` gave."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"]:
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))


def _hash(content) -> str:
    def plain(value):
        return sorted(value) if isinstance(value, set) else str(value)

    return hashlib.sha256(json.dumps(content, sort_keys=True, default=plain).encode()).hexdigest()[:16]
