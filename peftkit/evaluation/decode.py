"""Evaluate a model on a task: batched greedy decoding, then the task's metric."""
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


@torch.no_grad()
def generate_answers(model: nn.Module, processor, encoded: Encoded, max_new_tokens: int, batch_size: int = 200,
                     progress: bool = True) -> list[str]:
    """Greedy answers in the order of the rows; rows of similar length share a batch, padded on the left.

    Prompt tuning cannot tell its prompt from pads that follow it, so with it only rows of equal length share a batch.
    """
    model.eval()
    device = next(model.parameters()).device
    lengths = [len(prompt) for prompt in encoded.prompts]
    answers: dict[int, str] = {}
    batches = list(_batches(lengths, batch_size, same_length=leading_tokens(model) > 0))
    for rows in tqdm(batches, desc="answering", unit="batch", disable=not progress):
        batch = {name: value.to(device) for name, value in encoded.prompt_batch(rows).items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Position ids are not supported")  # peft's, on every prompt
            ids = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1,
                                 pad_token_id=encoded.pad)
        new = ids[:, batch["input_ids"].shape[1]:]
        answers.update(zip(rows, (a.strip() for a in processor.batch_decode(new, skip_special_tokens=True))))
    return [answers[row] for row in range(len(encoded))]


def _batches(lengths: list[int], size: int, same_length: bool) -> Iterator[list[int]]:
    """Row numbers by length, at most `size` together, of one length if asked."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    groups = [list(rows) for _, rows in groupby(order, lengths.__getitem__)] if same_length else [order]
    for rows in groups:
        yield from (rows[start:start + size] for start in range(0, len(rows), size))
