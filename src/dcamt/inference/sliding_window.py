"""Probabilities of a whole prepared volume from overlapping windows.

They are those of MONAI's ``sliding_window_inference``; a test compares them. MONAI itself is not
imported: that takes longer than to segment a scan.
"""

import math
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import pad

from dcamt.config import Patch, PredictConfig
from dcamt.errors import InputError
from dcamt.inference.predictor import Predictor
from dcamt.memory import check_fits

_MOST_WINDOWS = 1_000_000
_SIGMA = 0.125
"""Standard deviation of a Gaussian weighting, as a fraction of the patch."""
_LEAST_WEIGHT = 1e-3
"""Of a Gaussian weighting; corners would count for nothing otherwise."""

Observe = Callable[[int, int], None]
"""Called with the number of windows that are done, and of all."""


@torch.inference_mode()
def branch_probabilities(
    predictor: Predictor,
    image: Tensor,
    patch: Patch,
    classes: int,
    config: PredictConfig,
    mean: bool = False,
    observe: Observe = lambda done, total: None,
) -> Tensor:
    """Probabilities of every branch of a method, ``(N, K, x, y, z)`` float32 on the CPU.

    ``image``: ``(C, x, y, z)``. Windows lie and are weighted as ``config`` says; a volume smaller
    than the patch is padded with zeros, the mean intensity, and the padding is cut off again. With
    ``mean`` the branches are averaged window by window, N is 1, and memory is that of one branch.
    """
    _check_size(image, patch, classes, config)
    image, inside = pad_to(image, patch)
    networks = 1 if mean else predictor.networks
    summed = torch.zeros(networks, classes, *image.shape[1:])
    weights = torch.zeros(image.shape[1:])
    weight = _weight(patch, config).to(predictor.device)
    weight_on_cpu = weight.cpu()
    places = list(windows(image.shape[1:], patch, window_step(patch, config)))
    for first in range(0, len(places), config.batch):
        own = places[first : first + config.batch]
        batch = torch.stack([image[:, *place] for place in own]).to(predictor.device)
        found = predictor.branches(batch.contiguous(memory_format=torch.channels_last_3d))
        if mean and len(found) > 1:
            found = found.mean(0, keepdim=True)
        weighted = found.mul_(weight).cpu()
        for k, place in enumerate(own):
            summed[:, :, *place] += weighted[:, k]
            weights[place] += weight_on_cpu
        observe(first + len(own), len(places))
    summed /= weights
    return summed[:, :, *inside]


def pad_to(image: Tensor, patch: Patch) -> tuple[Tensor, list[slice]]:
    """``(C, x, y, z)`` with zeros on both sides where it is smaller than ``patch``.

    And where the image lies in it.
    """
    shape = image.shape[1:]
    missing = [max(0, size - n) for n, size in zip(shape, patch, strict=True)]
    before = [n // 2 for n in missing]
    if any(missing):
        sides = zip(before, missing, strict=True)
        image = pad(image, [n for low, all in reversed([*sides]) for n in (low, all - low)])
    return image, [slice(low, low + n) for low, n in zip(before, shape, strict=True)]


def windows(
    shape: tuple[int, ...], patch: Patch, steps: Patch
) -> Iterator[tuple[slice, slice, slice]]:
    """Where windows lie in a volume that is no smaller; the last ones end where it does."""
    starts = [
        [min(k * step, n - size) for k in range(1 + math.ceil((n - size) / step))]
        for n, size, step in zip(shape, patch, steps, strict=True)
    ]
    for x, y, z in product(*starts):
        yield slice(x, x + patch[0]), slice(y, y + patch[1]), slice(z, z + patch[2])


def _weight(patch: Patch, config: PredictConfig) -> Tensor:
    """What each voxel of a window counts, ``(X, Y, Z)`` float32, 1 at most."""
    weight = torch.ones(1)
    if config.weighting == "constant":
        return weight.expand(patch)
    for size in patch:
        away = torch.arange(size) - (size - 1) / 2  # voxels from the middle
        weight = weight[..., None] * torch.exp(-(away**2) / (2 * (_SIGMA * size) ** 2))
    return weight[0].clamp(min=max(_LEAST_WEIGHT, weight.min().item()))


def _check_size(image: Tensor, patch: Patch, classes: int, config: PredictConfig) -> None:
    """InputError where the padded volume or the list of windows would not fit into memory."""
    shape = (image.shape[1], image.shape[2], image.shape[3])
    padded = [max(n, size) for n, size in zip(shape, patch, strict=True)]
    sides = " x ".join(map(str, patch))
    needed = 4.0 * math.prod(padded) * (len(image) + classes)
    what = f"a scan padded to the patch of {sides} voxels"
    check_fits(needed, what, "crop the scan, or train with a smaller data.patch")
    count = count_windows(shape, patch, config)
    if count > _MOST_WINDOWS:
        raise InputError(
            f"{count} windows would take for ever; lower the overlap or enlarge the stride"
        )


def count_windows(shape: Patch, patch: Patch, config: PredictConfig) -> int:
    """Windows that cover a volume of ``shape`` voxels."""
    return math.prod(
        1 + math.ceil(max(0, n - size) / step)
        for n, size, step in zip(shape, patch, window_step(patch, config), strict=True)
    )


def window_step(patch: Patch, config: PredictConfig) -> Patch:
    """Voxels from one window to the next along each axis; the last one is moved back to fit."""
    check_stride(patch, config)
    if config.stride is not None:
        return config.stride
    x, y, z = (max(1, int(n * (1 - config.overlap))) for n in patch)
    return x, y, z


def check_stride(patch: Patch, config: PredictConfig) -> None:
    """InputError if ``config.stride`` is larger than the patch and would skip voxels."""
    stride = config.stride or patch
    if any(step > size for step, size in zip(stride, patch, strict=True)):
        raise InputError(
            f"predict.stride = {list(stride)} skips voxels: no side may be larger than the patch, "
            f"{list(patch)}"
        )


def window_overlap(patch: Patch, config: PredictConfig) -> tuple[float, float, float]:
    """The overlap along each axis, as a fraction of the patch."""
    if config.stride is None:
        return config.overlap, config.overlap, config.overlap

    def overlap(step: int, size: int) -> float:
        # A step is rounded down; half a voxel more keeps it from falling below ``step``.
        return max(0.0, 1 - (step + 0.5) / size)

    x, y, z = (overlap(step, size) for step, size in zip(config.stride, patch, strict=True))
    return x, y, z
