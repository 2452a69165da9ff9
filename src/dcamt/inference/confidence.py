"""How sure a network is of a segmentation, told without its label."""

import numpy as np
from numpy.typing import NDArray


def expected_dice(
    probabilities: NDArray[np.float32], segmentation: NDArray[np.uint8]
) -> list[float]:
    """Dice of each class but background that its own probabilities lead to expect, 0 to 1.

    Args:
        probabilities: ``(K, X, Y, Z)`` float32, averaged over the branches, so that a voxel on
            which they disagree is an unsure one.
        segmentation: ``(X, Y, Z)``, the most probable class of every voxel.

    Returns:
        K - 1 values ``2 sum_{v in S} p(v) / (sum_v p(v) + |S|)``, where S are the voxels that are
        segmented as the class: Dice, with the unknown label replaced by its probability. It is 0
        for a class of which no voxel is found.
    """
    expected = []
    for k in range(1, len(probabilities)):
        inside = total = 0.0
        size = 0
        for p, classes in zip(probabilities[k], segmentation, strict=True):  # less memory at a time
            found = classes == k
            inside += float(p.sum(where=found, dtype=np.float64))
            total += float(p.sum(dtype=np.float64))
            size += int(np.count_nonzero(found))
        # Stitched probabilities may be above 1 by a rounding.
        expected.append(min(1.0, 2 * inside / (total + size)) if size else 0.0)
    return expected
