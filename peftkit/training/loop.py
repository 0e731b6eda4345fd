"""The training loop: one readable accelerate loop for every method and model."""
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_scheduler, set_seed

from ..data.collate import Encoded, encode
from ..errors import PeftkitError
from ..methods import rule_of, trainable_map
from ..methods.switches import trained_beside
from .batches import LengthBuckets
from .checkpoint import Checkpoints, State, random_state, set_random_state, resumed
from .compiled import compiled
from .config import TrainConfig
from .features import cache_features, can_cache
from .few_passes import few_passes
from .memory import PeakMemory
from .merged_lora import merged_lora
from .parallel import AnswerLoss, Part, Parts, hand_back, mean, placed, start


@dataclass(frozen=True)
class TrainResult:
    """losses: one an optimizer step; steps; samples seen; seconds and samples_per_second of training alone;
    peak_memory_mb in 10^6 bytes, of `after_epoch` too."""

    losses: list[float]
    steps: int
    samples: int
    seconds: float
    samples_per_second: float
    peak_memory_mb: float


def train(model: nn.Module, processor, data: datasets.Dataset | Encoded, config: TrainConfig | None = None, *,
          prompt: str = "{question}", checkpoints: Checkpoints | str | Path | None = None,
          after_epoch: Callable[[int], None] | None = None) -> TrainResult:
    """Train what is trainable in `model`, in place, on rows of pictures, questions and answers.

    data: a split of a task with the task's `prompt` format, or one that `peftkit.data.encode` has prepared.
    checkpoints: a folder; the same call goes on from there after the process was killed (see `Checkpoints`).
    after_epoch: called with 1, 2, ... at the end of each whole epoch, while `model` is in eval mode and as it would be
    if training ended there; whatever it evaluates or draws, losses and weights stay the same, and its time is left out.
    The part of an epoch at the end of `epochs=2.5` does not call it, nor does a run that goes on from a checkpoint for
    epochs that ended before; under `accelerate launch`, every process does.
    The loss is the mean cross-entropy over the answer tokens of a step. With `config.progress` the trainable map is
    printed first and a bar shows loss and samples per second. Under `accelerate launch`, each of n processes takes
    batch_size of the n * batch_size rows of a batch (see `parallel`). Raises PeftkitError for a model without
    trainable parameters, a bad row, or a loss that is not finite (with the step and the likely cause). Warns of trained
    tensors that never received a gradient, by name.
    """
    config = config or TrainConfig()
    encoded = data if isinstance(data, Encoded) else encode(processor, data, prompt, max_length=config.max_length)
    cacheable = can_cache(model)
    accelerator = start(unused=not cacheable)  # LLaVA, for one, does not read the last block of a tower that trains
    trained = placed(model, accelerator)
    rule = rule_of(trained, config.seed)  # of SPIDER and its rivals
    groups = optimizer_groups(trained, config)
    if config.progress and accelerator.is_main_process:
        print(trainable_map(model).to_string(formatters={"share": "{:.2%}".format}))
    if not cacheable:  # features that were kept for a run with a frozen tower are of no use to this one
        encoded = replace(encoded, features=None)
    elif config.cache_features and encoded.features is None:
        cache_features(model, encoded, progress=config.progress and accelerator.is_main_process)
    set_seed(config.seed + accelerator.process_index)
    loader = _loader(encoded, model, config, accelerator)
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    steps = max(1, round(config.epochs * math.ceil(len(loader) / config.accumulation)))
    schedule = get_scheduler(config.schedule if config.schedule != "constant" else "constant_with_warmup", optimizer,
                             num_warmup_steps=math.ceil(config.warmup_ratio * steps), num_training_steps=steps)
    loss_of, optimizer = accelerator.prepare(AnswerLoss(trained), optimizer)
    memory, state = PeakMemory(), State(trained, optimizer, schedule, rule)
    trained.train()
    look = partial(_look, after_epoch, model, state) if after_epoch else None
    with resumed(state, checkpoints, encoded, config, accelerator) as after_step:
        _run(accelerator, loss_of, loader, state, steps, config, after_step, look)
    seconds = state.elapsed()
    if not (rule and rule.drops):
        _name_untouched(trained, state.optimizer)
    hand_back(trained, model)
    model.eval()
    return TrainResult(state.losses, steps, state.samples, seconds, state.samples / seconds, memory.megabytes())


def _loader(encoded: Encoded, model: nn.Module, config: TrainConfig, accelerator: Accelerator) -> DataLoader:
    """Batches for all processes, of which each takes its part; rows about one picture share a sequence if they can."""
    pictures = encoded.by_picture(range(len(encoded)))
    sampler = LengthBuckets(encoded.lengths(), config.batch_size * accelerator.num_processes, config.seed, pictures)
    tensors = encoded.training_batch
    if config.packing and len(pictures) < len(encoded):
        tensors = partial(encoded.packed_batch, longest=model.config.get_text_config().max_position_embeddings)
    return DataLoader(range(len(encoded)), batch_sampler=sampler, collate_fn=Parts(encoded, tensors, accelerator))


def _run(accelerator: Accelerator, loss_of: nn.Module, loader: DataLoader, state: State, steps: int,
         config: TrainConfig, after_step: Callable[[], None], look: Callable[[int], None] | None) -> None:
    """All steps, epoch by epoch if someone looks in between: then the model runs without what makes steps fast."""
    epoch, done = math.ceil(len(loader) / config.accumulation), len(state.losses)
    stretch, batches = epoch if look else steps, _steps(loader, config.accumulation, done)
    trainable = [parameter for parameter in loss_of.parameters() if parameter.requires_grad]
    blocks, hidden = compiled if config.compile else few_passes, not (config.progress and accelerator.is_main_process)
    with tqdm(total=steps, initial=done, desc="training", unit="step", disable=hidden) as bar:
        while (done := len(state.losses)) < steps:
            with merged_lora(state.model), blocks(state.model):
                for parts in islice(batches, min(steps - done, stretch - done % stretch)):
                    _step(accelerator, loss_of, trainable, state, parts, config)
                    rate = f"{state.samples / state.elapsed():.0f}"
                    bar.set_postfix(loss=f"{state.losses[-1]:.3f}", samples_per_s=rate, refresh=False)
                    bar.update()
                    after_step()
            if look and len(state.losses) % epoch == 0:
                look(len(state.losses) // epoch)


def _look(after_epoch: Callable[[int], None], model: nn.Module, state: State, epoch: int) -> None:
    """Let the caller look at the model; for the run it is as if no time had passed."""
    began, generators = time.perf_counter(), random_state()
    hand_back(state.model, model)
    model.eval()
    after_epoch(epoch)
    state.model.train()
    set_random_state(generators)
    state.since += time.perf_counter() - began


def _step(accelerator: Accelerator, loss_of: nn.Module, trainable: list[nn.Parameter], state: State, parts: list[Part],
          config: TrainConfig) -> None:
    loss = _backward(accelerator, loss_of, parts, config)
    _check_finite(loss, len(state.losses), config)
    if state.rule:
        state.rule.after_backward()
    accelerator.clip_grad_norm_(trainable, config.max_grad_norm)
    state.optimizer.step()
    if state.rule:
        state.rule.after_step()
    state.schedule.step()
    state.optimizer.zero_grad()
    state.losses.append(loss)
    state.samples += sum(part.all_rows for part in parts)


def _steps(loader: DataLoader, accumulation: int, done: int) -> Iterator[list[Part]]:
    """The batches of each optimizer step after `done` steps, epoch after epoch; an epoch's last step may have fewer."""
    loader.batch_sampler.epoch, skipped = divmod(done, math.ceil(len(loader) / accumulation))
    with torch.random.fork_rng(devices=(), enabled=skipped > 0):  # this epoch drew its number when it began
        batches = iter(skip_first_batches(loader, skipped * accumulation))
    while True:
        while step := list(islice(batches, accumulation)):
            yield step
        batches = iter(loader)


def _backward(accelerator: Accelerator, loss_of: nn.Module, parts: list[Part], config: TrainConfig) -> float:
    """The loss of a step, the mean over the answer tokens of all its batches on all processes, and its gradients."""
    tokens, losses = sum(part.all_tokens for part in parts), []
    for part in parts:
        share = part.tokens * accelerator.num_processes / tokens  # gradients become the mean of the processes'
        with accelerator.no_sync(loss_of) if part is not parts[-1] else nullcontext():
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                loss = loss_of(send_to_device(part.batch, accelerator.device)) * share
            accelerator.backward(loss)
        losses.append(loss.detach())
    return mean(sum(losses).item(), accelerator)


def optimizer_groups(model: nn.Module, config: TrainConfig) -> list[dict]:
    """Two parameter groups: the method at learning_rate, what is trained beside it at the connector's rate. Raises if
    nothing is trainable."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise PeftkitError("the model has no trainable parameters; inject a method first")
    along = trained_beside(model)
    groups = [{"params": [p for p in trainable if id(p) not in along], "lr": config.learning_rate},
              {"params": [p for p in trainable if id(p) in along], "lr": config.connector_rate}]
    return [group for group in groups if group["params"]]


def _name_untouched(model: nn.Module, optimizer: torch.optim.AdamW) -> None:
    """Warn of what the optimizer has never moved: it keeps a state only of parameters that have had a gradient."""
    names = [name for name, parameter in model.named_parameters()
             if parameter.requires_grad and parameter not in optimizer.state]
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        warnings.warn(f"no gradient ever reached {', '.join(names[:3])}{more}: trained, they are still as they were",
                      stacklevel=3)


def _check_finite(loss: float, step: int, config: TrainConfig) -> None:
    if math.isfinite(loss):
        return
    cause = "a value in the pictures or weights that is not finite" if step == 0 else (
        f"a learning rate that is too high (learning_rate={config.learning_rate}, "
        f"connector_learning_rate={config.connector_rate})")
    raise PeftkitError(f"the loss is {loss} at step {step + 1}; the likely cause is {cause}")
