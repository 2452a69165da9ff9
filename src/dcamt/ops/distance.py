"""Signed distance maps of a label."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor


def signed_distance(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distance in voxels to the surface of ``mask`` ``(X, Y, Z)``, scaled to [-1, 1].

    Negative inside, 0 on the outermost voxels of the mask, positive outside; each side divided by
    its own largest distance (Xue et al., AAAI 2020, as SASSNet and DTC use it). A mask that is
    empty is outside everywhere, 1, and one that is full is inside everywhere, -1.
    """
    if mask.all() or not mask.any():
        return np.full(mask.shape, -1 if mask.all() else 1, np.float32)
    inside, outside = distance_transform_edt(mask), distance_transform_edt(~mask)
    distance = outside / outside.max() - inside / inside.max()
    distance[inside == 1] = 0  # a face touches the outside
    return distance.astype(np.float32)


def signed_distances(label: Tensor, classes: int) -> Tensor:
    """Maps ``(B, classes - 1, X, Y, Z)`` float32 of each foreground class of ``(B, X, Y, Z)``.

    Computed on the CPU. IGNORE is outside every class; leaving it out of a loss is the caller's.
    """
    volumes = label.cpu().numpy()
    maps = [[signed_distance(volume == k) for k in range(1, classes)] for volume in volumes]
    return torch.from_numpy(np.array(maps)).to(label.device)
