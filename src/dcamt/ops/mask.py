"""Hiding parts of patches."""

from collections.abc import Sequence

import torch
from torch import Tensor


def random_blocks(
    shape: Sequence[int], sides: Sequence[int], share: float, device: torch.device
) -> Tensor:
    """A bool mask ``(B, X, Y, Z)`` of ``shape``: a ``share`` of each patch's blocks, at random.

    ``sides``: voxels of a block along each axis, divisors of (X, Y, Z). The number of blocks is
    rounded, but to one at least and, of several, not to all.
    """
    patches, *size = shape
    grid = [n // side for n, side in zip(size, sides, strict=True)]
    blocks = grid[0] * grid[1] * grid[2]
    count = max(1, min(round(share * blocks), blocks - 1))
    order = torch.rand(patches, blocks, device=device).argsort(1).argsort(1)
    mask = (order < count).reshape(patches, *grid)
    for axis, side in enumerate(sides, 1):
        mask = mask.repeat_interleave(side, axis)
    return mask
