"""Evaluate a model on a task: greedy decoding in batches, then the task's metric."""
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import datasets
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..data.collate import Encoded, encode
from ..errors import choose
from ..methods import leading_tokens
from .metrics import METRICS, score
from .shared import answer_packs, pack_batches, why_apart


@dataclass(frozen=True)
class Evaluation:
    """metric; score: mean of scores; scores: (N,) per example in [0, 1]; predictions; question_ids; seconds."""

    metric: str
    score: float
    scores: np.ndarray
    predictions: list[str]
    question_ids: list[str]
    seconds: float


def evaluate(model: nn.Module, processor, data: datasets.Dataset | Encoded, *, metric: str = "exact_match",
             prompt: str = "{question}", max_new_tokens: int = 16, batch_size: int = 200,
             progress: bool = True) -> Evaluation:
    """Answer every row greedily and score the answers.

    data: a split of a task with its `prompt` format, or one that `peftkit.data.encode` has prepared. CIDEr is scored
    over the whole split at once and divided by 10. Raises PeftkitError for an unknown metric or a bad row.
    """
    choose("metric", metric, METRICS)
    encoded = data if isinstance(data, Encoded) else encode(processor, data, prompt, split="test")
    start = time.perf_counter()
    predictions = generate_answers(model, processor, encoded, max_new_tokens, batch_size, progress)
    scores = score(metric, predictions, encoded.references)
    seconds = time.perf_counter() - start
    return Evaluation(metric, float(scores.mean()), scores, predictions, encoded.question_ids, seconds)


def generate_answers(model: nn.Module, processor, encoded: Encoded, max_new_tokens: int, batch_size: int = 200,
                     progress: bool = True) -> list[str]:
    """Greedy answers in the order of the rows; rows of similar length share a batch.

    Rows about one picture stand side by side in one sequence that holds the picture once (`shared.py`). Where that
    cannot be, each row is a sequence of its own for `model.generate`; if pictures repeat, a warning says why.
    """
    model.eval()
    reason = why_apart(model, encoded, max_new_tokens)
    if reason and len(set(encoded.picture_ids)) < len(encoded.picture_ids):
        warnings.warn(f"{reason}: every question is answered with a copy of its picture's tokens", stacklevel=2)
    answer = _answer_apart if reason else answer_packs
    batches = list(_batches(model, encoded, batch_size)) if reason else pack_batches(encoded, batch_size)
    answers: dict[int, str] = {}
    for batch in tqdm(batches, desc="answering", unit="batch", disable=not progress):
        found = answer(model, encoded, batch, max_new_tokens)
        texts = processor.batch_decode(list(found.values()), skip_special_tokens=True)
        answers.update(zip(found, (text.strip() for text in texts)))
    return [answers[row] for row in range(len(encoded))]


@torch.no_grad()
def _answer_apart(model: nn.Module, encoded: Encoded, rows: list[int], max_new_tokens: int) -> dict[int, list[int]]:
    """Row -> its new token ids. Prompts are padded on the left."""
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in encoded.prompt_batch(rows).items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Position ids are not supported")  # peft's, on every prompt
        ids = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1,
                             pad_token_id=encoded.pad)
    return dict(zip(rows, ids[:, batch["input_ids"].shape[1]:].tolist()))


def _batches(model: nn.Module, encoded: Encoded, size: int) -> Iterator[list[int]]:
    """Row numbers by length, at most `size` together.

    Prompt tuning cannot tell its prompt from pads that follow it, so with it only rows of equal length share a batch.
    """
    lengths = [len(prompt) for prompt in encoded.prompts]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    alike = [list(rows) for _, rows in groupby(order, lengths.__getitem__)] if leading_tokens(model) else [order]
    for rows in alike:
        yield from (rows[start:start + size] for start in range(0, len(rows), size))
