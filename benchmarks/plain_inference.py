"""The yardstick: inference and metrics as the published semi-supervised scripts compute them.

One window at a time, contiguous float32, softmax, and sum and count maps in numpy; MedPy for the
distances. Written to be correct and plain, and not to be tuned.
"""

import itertools

import numpy as np
import torch
from medpy.metric import binary
from numpy.typing import NDArray
from torch import nn


def plain_probabilities(
    network: nn.Module,
    image: NDArray[np.float32],
    patch: tuple[int, int, int],
    stride: tuple[int, int, int],
) -> NDArray[np.float32]:
    """Probabilities ``(K, x, y, z)`` of a volume ``(x, y, z)`` no smaller than the patch.

    ``network`` gives logits ``(1, K, X, Y, Z)``. The last window of an axis is moved back to the
    edge; every window counts alike.
    """
    total: NDArray[np.float32] | None = None
    count = np.zeros(image.shape, np.float32)
    for start in window_starts(image.shape, patch, stride):
        box = tuple(slice(a, a + n) for a, n in zip(start, patch, strict=True))
        window = torch.from_numpy(np.ascontiguousarray(image[box]))[None, None]
        with torch.no_grad():
            found = torch.softmax(network(window), dim=1)[0].numpy()
        if total is None:
            total = np.zeros((len(found), *image.shape), np.float32)
        total[(slice(None), *box)] += found
        count[box] += 1
    assert total is not None
    return total / count


def window_starts(
    shape: tuple[int, ...], patch: tuple[int, ...], stride: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """First voxel of every window."""
    axes = []
    for size, n, step in zip(shape, patch, stride, strict=True):
        steps = -(-(size - n) // step)
        axes.append([min(i * step, size - n) for i in range(steps + 1)])
    return list(itertools.product(*axes))


def plain_metrics(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: tuple[float, ...]
) -> dict[str, float]:
    """Dice, Jaccard, 95HD and ASD of two masks, distances in the unit of ``spacing``."""
    return {
        "dice": float(binary.dc(prediction, reference)),
        "jaccard": float(binary.jc(prediction, reference)),
        "hd95": float(binary.hd95(prediction, reference, spacing)),
        "asd": float(binary.asd(prediction, reference, spacing)),
    }
