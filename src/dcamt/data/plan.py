"""Decide how to prepare a data set from its fingerprint, after nnU-Net's rules.

Isensee et al., "nnU-Net", Nature Methods 2021. Only images and the labels of labelled training
cases are looked at.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcamt.config import DataConfig, Normalization, Plan
from dcamt.data.dataset import VOLUMES_AT_ONCE, Case, Dataset, check_label_values
from dcamt.data.space import place, spacing_along
from dcamt.data.volume import aligned, check_channels, read_image, read_label
from dcamt.errors import InputError
from dcamt.networks.vnet import STRIDE

PATCH_VOXELS = 112 * 112 * 80
"""Largest planned patch: the literature's left-atrium patch, which trains on an 8 GB GPU."""

ANISOTROPIC = 3.0
"""An axis is coarse when its spacing is this many times the finest one's."""


@dataclass(frozen=True)
class Fingerprint:
    """What planning needs of the training images; one row a case."""

    shapes: NDArray[np.int64]  # (N, 3) voxels of the cropped, reoriented images
    spacings: NDArray[np.float64]  # (N, 3) mm
    foreground: NDArray[np.float32]  # (M, C) intensities of labelled foreground voxels


def fingerprint(dataset: Dataset, cases: Sequence[Case], data: DataConfig) -> Fingerprint:
    """Read every training image once; labels only where the case still has one."""

    def look(case: Case) -> tuple[tuple[int, ...], tuple[float, ...], NDArray[np.float32]]:
        image = read_image(case.images)
        check_channels(image, dataset.channels, case.images[0])
        _, placement = place(image, data.orientation, data.crop)
        voxels = np.empty((0, len(image.array)), np.float32)
        if case.label is not None:
            label = read_label(case.label)
            label = aligned(image, label, case.images[0], case.label)
            check_label_values(label, len(dataset.classes), dataset.ignore, case.label)
            annotated = (label.array > 0) & (label.array < len(dataset.classes))
            chosen = image.array[:, annotated].T
            # A fixed thinning keeps every case's share of the statistics bounded.
            voxels = chosen[:: max(1, len(chosen) // 10_000)].astype(np.float32)
        return placement.cropped, spacing_along(image, placement), voxels

    with ThreadPoolExecutor(VOLUMES_AT_ONCE) as pool:
        shapes, spacings, voxels = zip(*pool.map(look, cases), strict=True)
    return Fingerprint(np.array(shapes), np.array(spacings), np.concatenate(voxels))


def make_plan(dataset: Dataset, found: Fingerprint, data: DataConfig) -> Plan:
    """The plan; whatever ``data`` sets wins over what the fingerprint suggests."""
    spacing = data.spacing or plan_spacing(found)
    shape = np.median(found.shapes * found.spacings / np.array(spacing), axis=0)
    patch = data.patch or plan_patch(shape)
    if any(size % STRIDE for size in patch):
        raise InputError(f"data.patch = {list(patch)}: every side must be a multiple of {STRIDE}")
    return Plan(
        channels=dataset.channels,
        classes=dataset.classes,
        ignore=dataset.ignore,
        orientation=data.orientation,
        spacing=spacing,
        crop=data.crop,
        normalization=tuple(
            _normalization(name, found.foreground[:, channel], data)
            for channel, name in enumerate(dataset.channels)
        ),
        patch=patch,
    )


def plan_spacing(found: Fingerprint) -> tuple[float, float, float]:
    """Median spacing in mm; on a coarse axis the 10th percentile, so that detail is not lost."""
    spacing = np.median(found.spacings, axis=0)
    coarse = int(spacing.argmax())
    if spacing[coarse] > ANISOTROPIC * spacing.min():
        spacing[coarse] = np.percentile(found.spacings[:, coarse], 10)
    rounded = [round(float(s), 4) for s in spacing]
    return rounded[0], rounded[1], rounded[2]


def plan_patch(shape: NDArray[np.float64]) -> tuple[int, int, int]:
    """Patch in voxels: the median volume to the nearest multiple of the network's stride.

    The longest side shrinks until the patch holds at most PATCH_VOXELS.
    """
    patch = [max(STRIDE, round(size / STRIDE) * STRIDE) for size in shape]
    while np.prod(patch) > PATCH_VOXELS:
        patch[int(np.argmax(patch))] -= STRIDE
    return patch[0], patch[1], patch[2]


def _normalization(channel: str, values: NDArray[np.float32], data: DataConfig) -> Normalization:
    """CT: clip and scale by the labelled foreground. Everything else: z-score per volume.

    Intensities that are declared normalized stay as they are.
    """
    if data.modality == "normalized":
        return Normalization(scheme="none")
    modality = data.modality or ("ct" if channel.strip().lower() == "ct" else "mr")
    if modality == "mr" and data.window is None:
        return Normalization()
    if len(values) == 0:
        raise InputError("no labelled case shows a foreground voxel; label one before planning")
    low, high = data.window or (float(q) for q in np.percentile(values, (0.5, 99.5)))
    clipped = np.clip(values.astype(np.float64), low, high)
    return Normalization(
        scheme="window",
        low=low,
        high=high,
        mean=float(clipped.mean()),
        std=max(float(clipped.std()), 1e-8),
    )
