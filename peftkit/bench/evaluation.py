"""Evaluation with five questions a picture against `generate` in batches."""
import copy
import time

import pandas as pd
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from ..data import Encoded, encode, task
from ..evaluation import evaluate
from ..methods import inject
from ..models import Base, load

QUESTIONS = 5  # a picture
PICTURES = {"tiny-llava-s": 80, "llava-shaped": 4}  # that one call answers questions about
NEW_TOKENS = 4


def bench_evaluation(repeats: int = 5) -> pd.DataFrame:
    """Questions per second of `peftkit.evaluate` and of `model.generate` on left-padded batches with a picture a row,
    for LoRA on tiny-llava-s and on a LLaVA-shaped model with 576 image tokens and random weights.

    Both get data that is tokenized and resized already, and run the vision tower themselves. Returns one row a model:
    medians over `repeats` alternated pairs, and the median, lowest and highest ratio.
    """
    small = load("tiny-llava-s")
    return pd.DataFrame([_compare(base, repeats) for base in (small, _llava_shaped(small))]).set_index("model").round(2)


def _compare(base: Base, repeats: int) -> dict:
    rows = _rows(base, PICTURES[base.name])
    model = inject(copy.deepcopy(base.model), "lora", rank=8).eval()
    pairs = pd.DataFrame([{"peftkit": _speed(lambda: _ours(model, base.processor, rows), len(rows)),
                           "generate": _speed(lambda: _generate(model, rows), len(rows))}
                          for _ in range(repeats + 1)][1:])  # the first pair warms up
    ratios = pairs["peftkit"] / pairs["generate"]
    return {"model": base.name, **pairs.median(), "ratio": ratios.median(), "lowest": ratios.min(),
            "highest": ratios.max()}


def _rows(base: Base, pictures: int) -> Encoded:
    drawn = task("vqav2", train_size=1, test_size=pictures * QUESTIONS, questions=QUESTIONS)
    return encode(base.processor, drawn.test, drawn.prompt, split="test")


def _speed(answer, questions: int) -> float:
    start = time.perf_counter()
    answer()
    return questions / (time.perf_counter() - start)


def _ours(model: nn.Module, processor, rows: Encoded) -> None:
    evaluate(model, processor, rows, max_new_tokens=NEW_TOKENS, progress=False)


@torch.no_grad()
def _generate(model: nn.Module, rows: Encoded, batch_size: int = 200) -> None:
    order = sorted(range(len(rows)), key=lambda row: len(rows.prompts[row]))
    for start in range(0, len(order), batch_size):
        batch = rows.prompt_batch(order[start:start + batch_size])
        model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=rows.pad)
