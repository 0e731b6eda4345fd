"""Our training loop against transformers.Trainer with peft."""
import copy
import tempfile
import time

import pandas as pd
import torch
from transformers import Trainer, TrainingArguments

from ..data import Encoded, encode, task
from ..methods import inject
from ..models import Base, load
from ..training import TrainConfig, train

BATCH, STEPS, RATE = 32, 40, 1e-3


def bench_trainer(base_name: str = "tiny-llava-s", repeats: int = 5) -> pd.DataFrame:
    """Samples per second of `peftkit.train` and of transformers.Trainer + peft: same base, LoRA, data, batch and steps.

    Both get data that is tokenized and resized already. Ours includes filling the vision-feature cache. Returns one row
    a repeat (peftkit, trainer, ratio) and a last row of medians.
    """
    base = load(base_name)
    drawn = task("vqav2", train_size=BATCH * STEPS // 2, test_size=1)
    rows = []
    for repeat in range(repeats + 1):  # the first pair warms up
        encoded = encode(base.processor, drawn.train, drawn.prompt)
        pair = {"peftkit": _ours(base, encoded), "trainer": _trainer(base, encoded)}
        if repeat:
            rows.append({"repeat": str(repeat), **pair, "ratio": pair["peftkit"] / pair["trainer"]})
    frame = pd.DataFrame(rows)
    median = {"repeat": "median", **frame.drop(columns="repeat").median().to_dict()}
    return pd.concat([frame, pd.DataFrame([median])], ignore_index=True).round(2)


def _ours(base: Base, encoded: Encoded) -> float:
    model = inject(copy.deepcopy(base.model), "lora", rank=8)
    start = time.perf_counter()
    train(model, base.processor, encoded, TrainConfig(epochs=2, batch_size=BATCH, learning_rate=RATE, progress=False))
    return BATCH * STEPS / (time.perf_counter() - start)


class _Rows(torch.utils.data.Dataset):
    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> int:
        return row


def _trainer(base: Base, encoded: Encoded) -> float:
    plain = copy.copy(encoded)
    plain.features = None

    def collate(rows: list[int]) -> dict:
        batch = plain.training_batch(rows)
        batch["labels"] = torch.nn.functional.pad(batch["labels"][:, :-1], (1, 0), value=-100)  # Trainer shifts itself
        return batch

    model = inject(copy.deepcopy(base.model), "lora", rank=8)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=BATCH, num_train_epochs=2, learning_rate=RATE, save_strategy="no",
            report_to=[], disable_tqdm=True, logging_strategy="no", remove_unused_columns=False,
            use_cpu=base.model.device.type == "cpu")
        trainer = Trainer(model, arguments, data_collator=collate, train_dataset=_Rows(len(plain)))
        start = time.perf_counter()
        trainer.train()
    return BATCH * STEPS / (time.perf_counter() - start)
