"""Prototypes: one mean feature per class, and how much a voxel is like each of them.

Features: ``(B, D, X, Y, Z)``. Both functions compute in float32 even under autocast.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def prototypes(features: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean feature of each class over the whole batch, ``(K, D)``.

    ``weight`` ``(B, K, X, Y, Z)`` says how much a voxel counts for a class; a class without any
    weight has the prototype 0.
    """
    with torch.autocast(features.device.type, enabled=False):
        total = torch.einsum("bdxyz,bkxyz->kd", features.float(), weight.float())
        return total / weight.float().sum((0, 2, 3, 4)).clamp(min=1e-12).unsqueeze(1)


def cosine(features: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine between each voxel's feature and each prototype ``(K, D)``: ``(B, K, X, Y, Z)``.

    It is 0 where either of them is 0.
    """
    with torch.autocast(features.device.type, enabled=False):
        voxels, classes = F.normalize(features.float(), dim=1), F.normalize(prototypes, dim=1)
        return torch.einsum("bdxyz,kd->bkxyz", voxels, classes)
