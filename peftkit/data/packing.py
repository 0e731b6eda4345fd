"""Several segments about one picture in one sequence: the prefix once, then segments that see it and themselves only.

Loss and gradients equal those of separate samples, because positions restart after the prefix and the mask is
block-diagonal.
"""
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Pack:
    """ids, positions, labels: (B, L) int64, labels -100 where nothing is learned; mask: (B, 1, L, L) additive."""

    ids: Tensor
    positions: Tensor
    labels: Tensor
    mask: Tensor


def pack(prefixes: list[list[int]], segments: list[list[tuple[list[int], list[int]]]], pad: int) -> Pack:
    """Put each prefix and its (prompt ids, answer ids) segments into one row; answers include their end token."""
    lengths = [len(p) + sum(len(a) + len(b) for a, b in s) for p, s in zip(prefixes, segments)]
    shape = (len(prefixes), max(lengths))
    ids, positions = np.full(shape, pad), np.zeros(shape, np.int64)
    labels, owner = np.full(shape, -100), np.full(shape, -1)
    for row, (prefix, parts) in enumerate(zip(prefixes, segments)):
        end = len(prefix)
        ids[row, :end], positions[row, :end], owner[row, :end] = prefix, np.arange(end), 0
        for number, (prompt, answer) in enumerate(parts, start=1):
            start, end = end, end + len(prompt) + len(answer)
            ids[row, start:end] = prompt + answer
            positions[row, start:end] = len(prefix) + np.arange(end - start)
            owner[row, start:end] = number
            labels[row, end - len(answer) - 1:end - 1] = answer  # the position before a token predicts it
    owner = torch.from_numpy(owner)
    same = (owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0)  # (B, L, L)
    allowed = same & torch.ones(shape[1], shape[1], dtype=torch.bool).tril()
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]
    return Pack(torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(labels), mask)
