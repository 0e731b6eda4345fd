"""The arithmetic of a step: floating point operations by formula, and the machine's measured rate of them."""
import time

import torch

from ..methods.method import dimensions


def step_flops(model, tokens: int, learned: int, pairs: int, trainable: int) -> float:
    """Operations of a forward and backward pass of a decoder-only model whose base is frozen.

    tokens: positions that all blocks compute; learned: positions of answers, which alone pass the last MLP and the
    head; pairs: (query, key) pairs that the attention mask lets through, of all heads together counted once; trainable:
    weights beside the frozen ones, such as LoRA's. A product of (n, a) and (a, b) costs 2nab. Frozen weights cost one
    product forward and one backward (no gradient of their own), trained ones one and two. Norms, activations and
    softmax are left out; the connector and tower too.
    """
    d = dimensions(model)
    attention = 2 * d.width * (d.query + d.key_value)
    mlp = (d.mlp_in + 1) * d.width * d.mlp
    text = model.config.get_text_config()
    frozen = tokens * (d.attentions * attention + (d.mlps - 1) * mlp)
    frozen += learned * (mlp + d.width * text.vocab_size)
    scores = pairs * d.attentions * 2 * d.query  # q k and p v; their backward passes cost twice
    return 2 * (2 * frozen + 3 * scores + 3 * tokens * trainable)


def matrix_rate(device: str = "cpu", dtype: torch.dtype = torch.float32, size: int | None = None,
                seconds: float = 1.0) -> float:
    """Operations a second of square matrix products of a size that suits the device, best of several."""
    size = size or (8192 if device == "cuda" else 1024)
    a = torch.randn(size, size, device=device, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size ** 3 / best
