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


def cutmix(inside: Tensor, sides: Tensor) -> Tensor:
    """What each patch takes from the one before it: a bool mask ``(U, X, Y, Z)``, a box in each.

    ``sides`` ``(U,)`` are shares of each side of a patch; 0 is no box. Padding, False in ``inside``
    ``(U, X, Y, Z)``, is neither taken nor painted over. Yun et al., "CutMix", ICCV 2019.
    """
    shape, device = inside.shape[1:], inside.device
    boxes = [random_box(shape, side, device) & (side > 0) for side in sides.tolist()]
    return torch.stack(boxes) & inside & inside.roll(1, 0)


def paste(values: Tensor, taken: Tensor) -> Tensor:
    """``values`` of every patch, ``(U, X, Y, Z)`` or ``(U, ?, X, Y, Z)``, mixed as ``cutmix`` says.

    Those where ``taken`` ``(U, X, Y, Z)`` holds are those of the patch before it.
    """
    where = taken if values.ndim == taken.ndim else taken.unsqueeze(1)
    return torch.where(where, values.roll(1, 0), values)


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
