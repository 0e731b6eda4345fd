"""Compiled steps against plain ones: how much faster, what compiling costs, and after how many steps it has paid."""
import copy
import time

import pandas as pd
import torch

from ..methods import inject
from ..training.compiled import compiled
from ..training.features import cache_features
from ..training.forward import answer_loss
from ..training.merged_lora import merged_lora
from .pairs import alternate
from .shapes import SMALL, rows_for, shaped

BATCH, STEPS = 32, 20


def bench_compile(repeats: int = 5, methods: tuple[str, ...] = ("lora", "adapter")) -> pd.DataFrame:
    """Forward and backward passes on tiny-llava-s, a row a method: milliseconds a step of both, their ratio (median of
    `repeats` alternated pairs of 20 steps of other lengths), seconds until compiled code ran, and pays_after (steps).

    Code that an earlier process compiled comes from a cache on the disk; TORCHINDUCTOR_CACHE_DIR names another folder.
    """
    base = shaped(SMALL)
    rows = cache_features(base.model, rows_for(base, BATCH * STEPS, 1))
    order = sorted(range(len(rows)), key=rows.lengths().__getitem__)
    batches = [rows.training_batch(order[i:i + BATCH]) for i in range(0, len(order), BATCH)]
    return pd.DataFrame([_compare(base, batches, method, repeats) for method in methods]).set_index("method").round(2)


def _compare(base, batches: list, method: str, repeats: int) -> dict:
    model = inject(copy.deepcopy(base.model), method).train()

    def plain() -> None:
        with merged_lora(model):
            _steps(model, batches)

    def generated() -> None:
        with merged_lora(model), compiled(model):
            _steps(model, batches)

    start = time.perf_counter()
    generated()
    first = time.perf_counter() - start
    found = alternate(generated, plain, repeats, method)
    saved = (found["theirs"] - found["ours"]) / len(batches)
    spent = first - found["ours"]
    return {"method": method, "plain_ms": 1e3 * found["theirs"] / len(batches),
            "compiled_ms": 1e3 * found["ours"] / len(batches), "ratio": found["ratio"], "lowest": found["lowest"],
            "highest": found["highest"], "compiling_s": spent, "pays_after": spent / saved if saved > 0 else None}


def _steps(model: torch.nn.Module, batches: list) -> None:
    for batch in batches:
        answer_loss(model, batch).backward()
        model.zero_grad()
