"""Whether scans all lie one way, so that no mirror image of them is ever to be segmented."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from dcamt.augmentation import AugmentConfig
from dcamt.data.prepare import Prepared

_SIDE = 16
"""Of the small images that are compared."""
_MOST = 24
_FEWEST = 4
"""Cases that are compared; fewer than these tell nothing."""
_DIFFERENCE = 0.1
_NAMES = {"R": "left-right", "L": "left-right", "A": "front-back", "P": "front-back"}


def choose_mirroring(
    augment: AugmentConfig, cases: Sequence[Prepared], orientation: str
) -> tuple[AugmentConfig, str | None]:
    """``augment`` with mirroring and turning decided, and why, as a sentence for the user.

    Scans that may lie either way gain by mirroring. Those that all lie one way lose by it: a class
    may be told by where it is. Of few cases nothing is known, and they are mirrored.
    """
    if augment.flip is not None and augment.rotate is not None:
        return augment, None
    alike = lie_alike(cases)
    free = tuple(axis for axis in (0, 1, 2) if not alike[axis])
    flip = tuple(a for a in free if a < 2) if augment.flip is None else augment.flip
    rotate = not alike[0] and not alike[1] if augment.rotate is None else augment.rotate
    chosen = augment.model_copy(update={"flip": flip, "rotate": rotate})
    fixed = [_NAMES.get(orientation[axis], "up-down") for axis in (0, 1, 2) if alike[axis]]
    if not fixed:
        return chosen, None
    return chosen, (
        f"the scans all lie one way ({', '.join(fixed)}), so patches are not mirrored along that; "
        "set train.augment.flip and train.augment.rotate for another choice"
    )


def lie_alike(cases: Sequence[Prepared]) -> tuple[bool, bool, bool]:
    """For each axis, whether a scan resembles the others more than it does their mirror image.

    Resemblance is the mean product of a small image, of unit variance, and the mean of the others.
    On average it must be 0.1 higher than with that mean mirrored. In nine cases of ten it must be
    higher at all.
    """
    chosen = [cases[i] for i in np.linspace(0, len(cases) - 1, min(_MOST, len(cases)), dtype=int)]
    if len(chosen) < _FEWEST:
        return False, False, False
    images = np.stack([_small(case.image[0]) for case in chosen])
    others = (images.sum(0) - images) / (len(images) - 1)

    def differs(axis: int) -> bool:
        mirrored = np.flip(others, axis + 1)
        more = (images * others).mean((1, 2, 3)) - (images * mirrored).mean((1, 2, 3))
        return bool(more.mean() > _DIFFERENCE and (more > 0).mean() >= 0.9)

    return differs(0), differs(1), differs(2)


def _small(image: NDArray[np.float32]) -> NDArray[np.float64]:
    """``(X, Y, Z)`` in 16x16x16 voxels, of zero mean and unit variance."""
    small = zoom(image, [_SIDE / n for n in image.shape], output=np.float64, order=1)
    result: NDArray[np.float64] = (small - small.mean()) / max(small.std(), 1e-6)
    return result
