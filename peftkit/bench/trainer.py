"""Our training loop against transformers.Trainer with peft."""
import copy
import tempfile

import pandas as pd
import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from ..data import Encoded
from ..methods import inject
from ..models import Base
from ..training import TrainConfig, train
from ..training.features import cache_features
from ..training.towers import connect
from .flops import matrix_rate, step_flops
from .pairs import alternate
from .shapes import rows_for, shaped

RATE = 1e-3
SETTINGS = {  # shape, questions a picture: pictures, batch size, epochs
    ("tiny-llava-s", 1): (640, 32, 2),
    ("tiny-llava-s", 5): (128, 40, 2),
    ("llava-576", 5): (4, 10, 1),
}


def bench_trainer(repeats: int = 5, compile: bool = False) -> pd.DataFrame:
    """Samples per second of `peftkit.train` and of transformers.Trainer + peft: same base, LoRA, data, batch and steps.

    Both get data that is tokenized and resized already. On the tiny base ours includes filling the feature cache and
    Trainer encodes every picture in every step, as it does; on llava-576 both have cached features. Returns a row a
    setting: samples a second (medians over `repeats` alternated pairs), the ratio with its lowest and highest pair, and
    the share of the machine's matrix rate that our steps reach by the formula of `flops.step_flops`.
    """
    rate = matrix_rate()
    rows = [_compare(shape, questions, repeats, compile, rate) for shape, questions in SETTINGS]
    return pd.DataFrame(rows).set_index(["model", "questions"]).round(2)


def _compare(shape: str, questions: int, repeats: int, compile: bool, rate: float) -> dict:
    base, (pictures, batch, epochs) = shaped(shape), SETTINGS[shape, questions]
    rows, cached = rows_for(base, pictures, questions), shape != "tiny-llava-s"
    if cached:
        cache_features(base.model, rows)
    config = TrainConfig(epochs=epochs, batch_size=batch, learning_rate=RATE, compile=compile, progress=False)
    seconds = alternate(lambda: _ours(base, rows, config), lambda: _trainer(base, rows, config), repeats,
                        f"{shape}, {questions} a picture")
    samples = len(rows) * epochs
    return {"model": shape, "questions": questions, "peftkit": samples / seconds["ours"],
            "trainer": samples / seconds["theirs"], **{k: seconds[k] for k in ("ratio", "lowest", "highest")},
            "of_matrix_rate": operations(_injected(base), rows, config) / seconds["ours"] / rate}


def _injected(base: Base):
    return inject(copy.deepcopy(base.model), "lora", rank=8)


def _ours(base: Base, rows: Encoded, config: TrainConfig) -> None:
    train(_injected(base), base.processor, copy.copy(rows), config)


def _trainer(base: Base, rows: Encoded, config: TrainConfig) -> None:
    run_trainer(_injected(base), rows, config, use_cpu=base.model.device.type == "cpu")


def operations(model, rows: Encoded, config: TrainConfig) -> float:
    """Operations of a training on `rows`, pads aside: one pack of all pictures' rows counts what the batches hold."""
    packed = rows.packed_batch([*range(len(rows))])
    visible = packed["attention_mask"] == 0  # (P, 1, L, L); what is a pad sees and is seen by pads only
    real = (packed["position_ids"] > 0).sum().item() + len(packed["input_ids"])
    pads = packed["input_ids"].numel() - real
    learned = (packed["labels"] >= 0).sum().item()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return config.epochs * step_flops(model, real, learned, visible.sum().item() - pads, trainable)


def run_trainer(model, rows: Encoded, config: TrainConfig, **arguments) -> None:
    """transformers.Trainer on the same rows, each a sequence of its own; arguments: more of TrainingArguments."""
    def collate(numbers: list[int]) -> dict:
        batch = rows.training_batch(numbers)
        batch["labels"] = torch.nn.functional.pad(batch["labels"][:, :-1], (1, 0), value=-100)  # Trainer shifts itself
        if "features" in batch:
            with torch.no_grad():
                batch |= connect(model, batch.pop("features"))
        return batch

    with tempfile.TemporaryDirectory() as folder:
        chosen = TrainingArguments(
            folder, per_device_train_batch_size=config.batch_size, num_train_epochs=config.epochs,
            learning_rate=RATE, save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no",
            remove_unused_columns=False, **arguments)
        trainer = Trainer(model, chosen, data_collator=collate, train_dataset=_Numbers(len(rows)))
        trainer.remove_callback(PrinterCallback)
        trainer.train()


class _Numbers(torch.utils.data.Dataset):
    """Row numbers, which `collate` turns into a batch."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> int:
        return row
