"""Pictures of any size as patches on a grid, and the three-dimensional positions of their tokens: Qwen2-VL's way."""
import numpy as np
import torch
from torch import Tensor


def real_patches(padded: Tensor, grids: Tensor) -> Tensor:
    """Which patches of `padded` (B, longest, ...) belong to a picture: bool (B, longest).

    grids: (B, 3), times, rows and columns of each picture's patches. Qwen2-VL takes those of all pictures in one list:
    padded[real_patches(padded, grids)].
    """
    return torch.arange(padded.shape[1], device=padded.device) < grids.prod(-1, keepdim=True).to(padded.device)


def grid_positions(ids: list[int], image_token: int, grid: Tensor, merge_size: int) -> np.ndarray:
    """Position of each token in time, height and width: (3, tokens), for a text with one picture (M-RoPE).

    Text counts on in all three at once. The picture's tokens, one for each merge_size x merge_size patches of `grid`
    (3,), stand at their row and column, and the text after them goes on from the larger side.
    Source: Qwen2-VL (Wang et al. 2024), figure 3; equal to transformers' `Qwen2VLModel.get_rope_index`.
    """
    times, rows, columns = (grid // torch.tensor([1, merge_size, merge_size])).tolist()
    start, tokens = ids.index(image_token), times * rows * columns
    positions = np.tile(np.arange(len(ids)), (3, 1))
    positions[:, start:start + tokens] = start + np.indices((times, rows, columns)).reshape(3, -1)
    positions[:, start + tokens:] -= tokens - max(rows, columns)
    return positions
