"""Mixing patches of two cases."""

from collections.abc import Sequence

import torch
from torch import Tensor


def random_box(shape: Sequence[int], share: float, device: torch.device) -> Tensor:
    """A bool mask ``(X, Y, Z)`` with a box of ``share`` of each side at a random place.

    Bai et al., "Bidirectional copy-paste", CVPR 2023.
    """
    mask = torch.zeros(*shape, dtype=torch.bool, device=device)
    sizes = [max(1, round(share * n)) for n in shape]
    starts = [int(torch.randint(n - s + 1, ())) for n, s in zip(shape, sizes, strict=True)]
    x, y, z = (slice(a, a + s) for a, s in zip(starts, sizes, strict=True))
    mask[x, y, z] = True
    return mask
