"""Connected components. Voxels that touch by a face, an edge or a corner are connected."""

from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

Classes = TypeVar("Classes", bound=np.integer[Any])


def keep_largest(segmentation: NDArray[Classes]) -> NDArray[Classes]:
    """Only the largest component of every class of ``(X, Y, Z)`` stays; the rest becomes 0."""
    result = np.zeros_like(segmentation)
    for k in np.unique(segmentation[segmentation > 0]):
        pieces, _ = ndimage.label(segmentation == k, structure=np.ones((3, 3, 3)))
        result[pieces == np.bincount(pieces.ravel())[1:].argmax() + 1] = k
    return result


def largest_components(classes: Tensor) -> Tensor:
    """``keep_largest`` of every item of ``(B, X, Y, Z)``; found on the CPU."""
    kept = [torch.from_numpy(keep_largest(volume)) for volume in classes.cpu().numpy()]
    return torch.stack(kept).to(classes.device)
