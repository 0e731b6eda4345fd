"""The training loop: one readable accelerate loop for every method and model."""
import math
import time
from dataclasses import dataclass, replace

import datasets
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_scheduler, set_seed

from ..data.collate import Encoded, encode
from ..errors import PeftkitError
from ..methods import rule_of, trainable_map
from ..methods.connector import connector_copies
from ..methods.selective.rule import Rule
from .batches import LengthBuckets
from .config import TrainConfig
from .features import cache_features, can_cache
from .forward import answer_loss
from .memory import PeakMemory


@dataclass(frozen=True)
class TrainResult:
    """losses: one an optimizer step; steps; samples seen; seconds and samples_per_second of training alone;
    peak_memory_mb in 10^6 bytes."""

    losses: list[float]
    steps: int
    samples: int
    seconds: float
    samples_per_second: float
    peak_memory_mb: float


def train(model: nn.Module, processor, data: datasets.Dataset | Encoded, config: TrainConfig | None = None, *,
          prompt: str = "{question}") -> TrainResult:
    """Train what is trainable in `model`, in place, on rows of pictures, questions and answers.

    data: a split of a task with the task's `prompt` format, or one that `peftkit.data.encode` has prepared.
    The loss is the mean cross-entropy over the answer tokens of a batch. With `config.progress` the trainable map is
    printed first and a bar shows loss and samples per second. Raises PeftkitError for a model without
    trainable parameters, a bad row, or a loss that is not finite (with the step and the likely cause).
    """
    config = config or TrainConfig()
    encoded = data if isinstance(data, Encoded) else encode(processor, data, prompt, max_length=config.max_length)
    rule = rule_of(model, config.seed)  # of SPIDER and its rivals
    groups = optimizer_groups(model, config)
    if config.progress:
        print(trainable_map(model).to_string(formatters={"share": "{:.2%}".format}))
    accelerator = _accelerator(config)
    model.to(accelerator.device)  # not prepared: accelerate's wrapper would go on casting to bf16 after training
    if not can_cache(model):  # features that were kept for a run with a frozen tower are of no use to this one
        encoded = replace(encoded, features=None)
    elif config.cache_features and encoded.features is None:
        cache_features(model, encoded)
    set_seed(config.seed)
    sampler = LengthBuckets(encoded.lengths(), config.batch_size, config.seed)
    loader = DataLoader(range(len(encoded)), batch_sampler=sampler, collate_fn=encoded.training_batch)
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    per_epoch = math.ceil(len(loader) / config.accumulation)
    steps = max(1, round(config.epochs * per_epoch))
    schedule = get_scheduler(config.schedule if config.schedule != "constant" else "constant_with_warmup", optimizer,
                             num_warmup_steps=math.ceil(config.warmup_ratio * steps), num_training_steps=steps)
    optimizer, loader, schedule = accelerator.prepare(optimizer, loader, schedule)
    memory, start = PeakMemory(), time.perf_counter()
    model.train()
    losses, samples = _run(accelerator, model, optimizer, loader, schedule, steps, config, rule)
    model.eval()
    seconds = time.perf_counter() - start
    return TrainResult(losses, steps, samples, seconds, samples / seconds, memory.megabytes())


def _run(accelerator, model, optimizer, loader, schedule, steps: int, config: TrainConfig,
         rule: Rule | None) -> tuple[list[float], int]:
    losses, pending, samples = [], [], 0
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    bar = tqdm(total=steps, desc="training", unit="step", disable=not config.progress)
    while len(losses) < steps:
        for batch in loader:
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    loss = answer_loss(model, batch)
                pending.append(loss.item())
                _check_finite(pending[-1], len(losses), config)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    if rule:
                        rule.after_backward()
                    accelerator.clip_grad_norm_(trainable, config.max_grad_norm)
                optimizer.step()
                if rule and accelerator.sync_gradients:
                    rule.after_step()
                schedule.step()
                optimizer.zero_grad()
            samples += len(batch["input_ids"])
            if accelerator.sync_gradients:
                losses.append(sum(pending) / len(pending))
                pending = []
                rate = bar.format_dict["elapsed"] and samples / bar.format_dict["elapsed"]
                bar.set_postfix(loss=f"{losses[-1]:.3f}", samples_per_s=f"{rate or 0:.0f}", refresh=False)
                bar.update()
                if len(losses) == steps:
                    break
    bar.close()
    return losses, samples


def optimizer_groups(model: nn.Module, config: TrainConfig) -> list[dict]:
    """Two parameter groups: the method at learning_rate, a connector tuned along at its own. Raises if nothing is
    trainable."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise PeftkitError("the model has no trainable parameters; inject a method first")
    along = connector_copies(model)
    groups = [{"params": [p for p in trainable if id(p) not in along], "lr": config.learning_rate},
              {"params": [p for p in trainable if id(p) in along], "lr": config.connector_rate}]
    return [group for group in groups if group["params"]]


def _accelerator(config: TrainConfig) -> Accelerator:
    precision = "bf16" if config.precision == "bf16" else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # accelerate keeps one precision a process; a kit runs many configurations
    return Accelerator(mixed_precision=precision, gradient_accumulation_steps=config.accumulation)


def _check_finite(loss: float, step: int, config: TrainConfig) -> None:
    if math.isfinite(loss):
        return
    cause = "a value in the pictures or weights that is not finite" if step == 0 else (
        f"a learning rate that is too high (learning_rate={config.learning_rate}, "
        f"connector_learning_rate={config.connector_rate})")
    raise PeftkitError(f"the loss is {loss} at step {step + 1}; the likely cause is {cause}")
