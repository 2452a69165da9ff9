"""Probabilities of a whole prepared volume from overlapping windows."""

import math

import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor

from dcamt.config import Patch, PredictConfig
from dcamt.errors import InputError
from dcamt.inference.predictor import Predictor
from dcamt.memory import check_fits

_MOST_WINDOWS = 1_000_000


@torch.inference_mode()
def branch_probabilities(
    predictor: Predictor,
    image: Tensor,
    patch: Patch,
    classes: int,
    config: PredictConfig,
    mean: bool = False,
) -> Tensor:
    """Probabilities of every branch of a method, ``(N, K, x, y, z)`` float32 on the CPU.

    ``image``: ``(C, x, y, z)``. Windows lie and are weighted as ``config`` says; a volume smaller
    than the patch is padded with zeros, the mean intensity, and the padding is cut off again. With
    ``mean`` the branches are averaged window by window, N is 1, and memory is that of one branch.
    """

    _check_size(image, patch, classes, config)

    def windows(batch: Tensor) -> Tensor:
        laid_out = batch.contiguous(memory_format=torch.channels_last_3d)
        found = predictor.branches(laid_out)
        if mean:
            found = found.mean(0, keepdim=True)
        return found.transpose(0, 1).flatten(1, 2)

    averaged: Tensor = sliding_window_inference(
        image[None],
        roi_size=patch,
        sw_batch_size=config.batch,
        predictor=windows,
        overlap=window_overlap(patch, config),
        mode=config.weighting,
        sw_device=predictor.device,
        device=torch.device("cpu"),
    )[0]
    return averaged.unflatten(0, (-1, classes))


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
    shares = window_overlap(patch, config)
    x, y, z = (max(1, int(n * (1 - share))) for n, share in zip(patch, shares, strict=True))
    return x, y, z


def window_overlap(patch: Patch, config: PredictConfig) -> tuple[float, float, float]:
    """The overlap along each axis, as a fraction of the patch.

    Raises InputError if ``config.stride`` is larger than the patch and would skip voxels.
    """
    if config.stride is None:
        return config.overlap, config.overlap, config.overlap
    if any(step > size for step, size in zip(config.stride, patch, strict=True)):
        raise InputError(
            f"predict.stride = {list(config.stride)} skips voxels: no side may be larger than the "
            f"patch, {list(patch)}"
        )

    def overlap(step: int, size: int) -> float:
        # MONAI rounds the step down; half a voxel more keeps it from falling below ``step``.
        return max(0.0, 1 - (step + 0.5) / size)

    x, y, z = (overlap(step, size) for step, size in zip(config.stride, patch, strict=True))
    return x, y, z
