"""Mixing patches of two cases."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dcamt.types import IGNORE


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


def random_classes(label: Tensor, classes: int) -> Tensor:
    """A bool mask ``(B, X, Y, Z)`` of half of the classes of each patch, drawn at random.

    Half of those that ``label`` ``(B, X, Y, Z)`` holds, rounded down; IGNORE is none of them.
    Olsson et al., "ClassMix", WACV 2021.
    """
    held = torch.stack([(label == k).flatten(1).any(1) for k in range(classes)], 1)
    draw = torch.rand(held.shape, device=label.device).masked_fill(~held, 2.0)
    chosen = draw.argsort(1).argsort(1) < held.sum(1, keepdim=True) // 2
    found = chosen.gather(1, label.clamp(min=0).flatten(1)).view_as(label)
    return found & (label != IGNORE)
