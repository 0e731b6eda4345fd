"""Every method against LoRA with as many trainable parameters: seconds a step, and memory that a step keeps."""
import copy

import pandas as pd
import torch
from tqdm import tqdm

from ..data import Encoded
from ..methods import METHODS, inject, rule_of, trainable_count
from ..models import Base, load
from ..training.forward import answer_loss
from .steps import ratios, rows_of, seconds_a_step

BATCH = 32


def bench_methods(base: str = "tiny-llava-s", repeats: int = 5, only: list[str] | None = None) -> pd.DataFrame:
    """One row a method: trainable parameters, the rank of the LoRA beside it (the nearest in parameters), step (seconds
    a step relative to that LoRA's, median over `repeats` alternated pairs, with the fastest and slowest pair), memory
    (bytes kept for one step's backward pass and for weights, gradients and AdamW's moments, relative to the LoRA's).
    """
    base = load(base)
    rows = rows_of(base, BATCH)
    a_rank = trainable_count(base.model, "lora", rank=1)
    found = []
    for method in tqdm(only or METHODS, desc="methods", unit="method"):
        trainable = trainable_count(base.model, method)
        rank = min(max(1, round(trainable / a_rank)), base.model.config.get_text_config().hidden_size)
        steps = ratios(lambda: seconds_a_step(base, rows, BATCH, method),
                       lambda: seconds_a_step(base, rows, BATCH, "lora", rank=rank), repeats)
        memory = _kept(base, rows, method) / _kept(base, rows, "lora", rank=rank)
        found.append({"method": method, "trainable": trainable, "lora_rank": rank, **steps, "memory": memory})
    return pd.DataFrame(found).set_index("method").round(2)


def _kept(base: Base, rows: Encoded, method: str, **options) -> int:
    """Bytes that autograd keeps between forward and backward, each storage once and the base's weights not, plus four
    times the trained weights (weight, gradient, two moments) and what an update rule sums up."""
    model = inject(copy.deepcopy(base.model), method, **options).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = answer_loss(model, rows.training_batch(list(range(BATCH))))
    state = 4 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    rule = rule_of(model)
    sums = sum(total.numel() * total.element_size() for total in rule.state_dict().values()) if rule else 0
    del loss
    return sum(kept.values()) + state + sums
