"""Five questions about a picture in one sequence against five sequences: time, memory, and that nothing else differs."""
import copy
from functools import partial
from multiprocessing import get_context

import pandas as pd
import torch

from ..methods import inject
from ..training import TrainConfig, train
from ..training.features import cache_features
from ..training.forward import answer_loss
from ..training.memory import PeakMemory
from .pairs import alternate
from .shapes import rows_for, shaped

QUESTIONS, PICTURES = 5, 2


def bench_packing(repeats: int = 5) -> pd.Series:
    """Packed against separate rows on llava-576 (LoRA on every linear layer, cached features), a step of 10 questions.

    time_ratio: separate over packed seconds, median of `repeats` alternated pairs; memory_ratio: packed over separate,
    of what a step adds to the memory of a process of its own; loss and gradient: relative difference (the gradient's
    as its largest over all tensors, relative to the tensor's norm); curve: largest difference of a loss over two epochs
    of training tiny-llava-s on the same batches.
    """
    step = {packing: partial(_step, *_setting(), packing) for packing in (True, False)}
    times = alternate(step[True], step[False], repeats, "packed and separate")
    (loss, gradients), (expected, separate) = step[True](), step[False]()
    with get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        memory = [processes.apply(_growth, (packing,)) for packing in (True, False)]
    gradient = max(((gradients[name] - g).norm() / g.norm()).item() for name, g in separate.items() if g.norm() > 0)
    return pd.Series({"time_ratio": times["ratio"], "lowest": times["lowest"], "highest": times["highest"],
                      "memory_ratio": memory[0] / memory[1], "packed_mb": memory[0], "separate_mb": memory[1],
                      "loss": abs(loss - expected) / expected, "gradient": gradient, "curve": _curve()})


def _setting() -> tuple:
    base = shaped("llava-576")
    rows = cache_features(base.model, rows_for(base, PICTURES, QUESTIONS))
    model = inject(base.model, "lora", rank=16).train()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide the gradients of A
            parameter.data.normal_(std=0.02, generator=generator)
    return model, rows


def _step(model, rows, packing: bool) -> tuple[float, dict]:
    model.zero_grad()
    numbers = [*range(len(rows))]
    loss = answer_loss(model, rows.packed_batch(numbers) if packing else rows.training_batch(numbers))
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _growth(packing: bool) -> float:
    """Megabytes that a step adds at its peak, in this process."""
    model, rows = _setting()
    PeakMemory()
    before = PeakMemory().megabytes()
    memory = PeakMemory()
    _step(model, rows, packing)
    return memory.megabytes() - before


def _curve() -> float:
    base = shaped("tiny-llava-s")
    rows = rows_for(base, 40, QUESTIONS)
    losses = []
    for packing in (True, False):
        model = inject(copy.deepcopy(base.model), "lora", connector="tuned")
        config = TrainConfig(epochs=2, batch_size=20, learning_rate=1e-3, packing=packing, progress=False)
        losses.append(train(model, base.processor, rows, config).losses)
    return max(abs(a - b) for a, b in zip(*losses))
