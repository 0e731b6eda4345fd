"""Evaluation with five questions a picture against `generate` in batches."""
import copy
from functools import partial

import pandas as pd
import torch
from torch import nn

from ..data import Encoded
from ..evaluation import evaluate
from ..methods import inject
from .pairs import alternate
from .shapes import rows_for, shaped

QUESTIONS = 5  # a picture
PICTURES = {"tiny-llava-s": 80, "llava-576": 4}  # that a call answers questions about
NEW_TOKENS = 4


def bench_evaluation(repeats: int = 5) -> pd.DataFrame:
    """Questions per second of `peftkit.evaluate` and of `model.generate` on left-padded batches with a picture a row,
    both on LoRA models.

    Both get data that is tokenized and resized already, and run the vision tower themselves. Returns one row a model:
    medians over `repeats` alternated pairs, and the median, lowest and highest ratio of a pair.
    """
    return pd.DataFrame([_compare(name, repeats) for name in PICTURES]).set_index("model").round(2)


def _compare(name: str, repeats: int) -> dict:
    base = shaped(name)
    rows = rows_for(base, PICTURES[name], QUESTIONS)
    model = inject(copy.deepcopy(base.model), "lora", rank=8).eval()
    ours = partial(evaluate, model, base.processor, rows, max_new_tokens=NEW_TOKENS, progress=False)
    times = alternate(ours, partial(_generate, model, rows), repeats, name)
    return {"model": name, "peftkit": len(rows) / times["ours"], "generate": len(rows) / times["theirs"],
            **{key: times[key] for key in ("ratio", "lowest", "highest")}}


@torch.no_grad()
def _generate(model: nn.Module, rows: Encoded, batch_size: int = 200) -> None:
    order = sorted(range(len(rows)), key=lambda row: len(rows.prompts[row]))
    for start in range(0, len(order), batch_size):
        batch = rows.prompt_batch(order[start:start + batch_size])
        model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=rows.pad)
