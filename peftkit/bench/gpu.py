"""LLaVA-1.5-7B's shape on a GPU: our loop against transformers.Trainer + peft with gradient checkpointing."""
import gc
from datetime import date
from functools import partial

import pandas as pd
import torch

from ..errors import PeftkitError
from ..methods import inject
from ..training import TrainConfig, train
from ..training.memory import PeakMemory
from .flops import matrix_rate
from .pairs import alternate
from .shapes import rows_for, shaped
from .trainer import RATE, operations, run_trainer

METHODS = {"lora": {"rank": 128}, "adapter": {"bottleneck": 256}}  # the sizes of Zhou 2024
PICTURES, BATCH = 8, 20


def bench_gpu(repeats: int = 5, shape: str = "llava-1.5-7b") -> pd.DataFrame:
    """LoRA and adapter at 1 and 5 questions a picture, random weights, bfloat16; the vision tower runs on both sides.

    Returns a row a method and number of questions: date, card, tokens a second of ours (of the sequences as the data
    have them, so that packing does not count against itself) and of Trainer, their ratio, peak memory of both in GB,
    and the share of the card's measured bfloat16 rate that our operations reach. Raises PeftkitError without a GPU.
    """
    if not torch.cuda.is_available():
        raise PeftkitError("no GPU is visible to torch; accepted: an NVIDIA card, and torch built for it "
                           "(make env TORCH_INDEX=https://pypi.org/simple)")
    return _bench(repeats, shape, "cuda")


def _bench(repeats: int, shape: str, device: str) -> pd.DataFrame:
    rate = matrix_rate(device, torch.bfloat16)
    card = torch.cuda.get_device_name() if device == "cuda" else device
    rows = [_compare(shape, device, method, questions, repeats, rate) for method in METHODS for questions in (1, 5)]
    frame = pd.DataFrame(rows).assign(date=date.today().isoformat(), card=card)
    return frame.set_index(["method", "questions"]).round(3)


def _compare(shape: str, device: str, method: str, questions: int, repeats: int, rate: float) -> dict:
    base = shaped(shape, torch.bfloat16, device)
    rows = rows_for(base, PICTURES, questions)
    model = inject(base.model, method, **METHODS[method])
    config = TrainConfig(epochs=1, batch_size=BATCH, learning_rate=RATE, precision="bf16", cache_features=False,
                         progress=False)
    ours = partial(_peak, lambda: train(model, base.processor, rows, config))
    checkpointing = dict(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": False})
    theirs = partial(_peak, lambda: run_trainer(model, rows, config, bf16=True, use_cpu=device == "cpu",
                                                **checkpointing))
    seconds = alternate(ours, lambda: _undone(model, theirs), repeats, f"{method}, {questions} a picture")
    tokens = sum(rows.lengths())
    return {"method": method, "questions": questions, "peftkit": tokens / seconds["ours"],
            "trainer": tokens / seconds["theirs"], **{k: seconds[k] for k in ("ratio", "lowest", "highest")},
            "peftkit_gb": ours() / 1e3, "trainer_gb": _undone(model, theirs) / 1e3,
            "of_matrix_rate": operations(model, rows, config) / seconds["ours"] / rate}


def _peak(work) -> float:
    """Peak megabytes while the work is done."""
    gc.collect()
    memory = PeakMemory()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return memory.megabytes()


def _undone(model, theirs) -> float:
    """Trainer switches gradient checkpointing on for good: off again after it."""
    try:
        return theirs()
    finally:
        model.get_base_model().activation_checkpointing_disable()
