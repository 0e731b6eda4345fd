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
    """ids, positions, labels: (B, L) int64, labels -100 where nothing is learned; mask: (B, 1, L, L) additive.

    positions are (3, B, L) where a picture's tokens stand on a grid.
    """

    ids: Tensor
    positions: Tensor
    labels: Tensor
    mask: Tensor


def pack(prefixes: list[list[int]], segments: list[list[tuple[list[int], list[int]]]], pad: int,
         places: list[np.ndarray] | None = None) -> Pack:
    """Put each prefix and its (prompt ids, answer ids) segments into one row; answers include their end token.

    places: the positions of each prefix, (tokens,) or (3, tokens); counted from 0 unless given.
    """
    places = places or [np.arange(len(prefix)) for prefix in prefixes]
    lengths = [len(p) + sum(len(a) + len(b) for a, b in s) for p, s in zip(prefixes, segments)]
    shape = (len(prefixes), max(lengths))
    ids, positions = np.full(shape, pad), np.zeros((*places[0].shape[:-1], *shape), np.int64)
    labels, owner = np.full(shape, -100), np.full(shape, -1)
    for row, (prefix, place, parts) in enumerate(zip(prefixes, places, segments)):
        end, follows = len(prefix), place.max(initial=-1) + 1
        ids[row, :end], positions[..., row, :end], owner[row, :end] = prefix, place, 0
        for number, (prompt, answer) in enumerate(parts, start=1):
            start, end = end, end + len(prompt) + len(answer)
            ids[row, start:end] = prompt + answer
            positions[..., row, start:end] = follows + np.arange(end - start)
            owner[row, start:end] = number
            labels[row, end - len(answer) - 1:end - 1] = answer  # the position before a token predicts it
    owner = torch.from_numpy(owner)
    same = (owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0)  # (B, L, L)
    allowed = same & torch.ones(shape[1], shape[1], dtype=torch.bool).tril()
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]
    return Pack(torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(labels), mask)
