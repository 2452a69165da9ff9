"""Decide how to prepare a data set from its fingerprint, after nnU-Net's rules.

Isensee et al., "nnU-Net", Nature Methods 2021. Only images and the labels of labelled training
cases are looked at.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcamt.config import DataConfig, Normalization, Patch, Plan, Triple
from dcamt.data.dataset import Dataset
from dcamt.errors import InputError

StrideOf = Callable[[Patch, Triple], tuple[int, int, int]]
"""What each side of a patch must be a multiple of, from its size (voxels) and spacing (mm)."""

PATCH_VOXELS = 112 * 112 * 80
"""Largest planned patch: the literature's left-atrium patch, which trains on an 8 GB GPU."""

ANISOTROPIC = 3.0
"""An axis is coarse when its spacing is this many times the finest one's."""

MASKED = 3 / 4
"""Scans are masked (skull-stripped, say) where less than this share of them is not zero."""

MEANINGS = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "minmax",
    "rgb_to_0_1": "rgb",
}
"""Channel names, in small letters, that say how to normalise; nnU-Net's."""


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What planning needs of the N training images, with M labelled voxels of C channels."""

    whole: NDArray[np.int64]  # (N, 3) voxels of the reoriented images
    shapes: NDArray[np.int64]  # (N, 3) voxels of their content: the box of what is not zero
    spacings: NDArray[np.float64]  # (N, 3) mm
    inside: NDArray[np.float64]  # (N,) share of the voxels that are not zero
    lost: int  # labelled voxels outside the content
    foreground: NDArray[np.float32]  # (M, C) intensities of labelled voxels


def sixteen(patch: Patch, spacing: Triple) -> tuple[int, int, int]:
    """The stride of the usual network, the V-Net."""
    return 16, 16, 16


def make_plan(
    dataset: Dataset,
    found: Fingerprint,
    data: DataConfig,
    stride: StrideOf = sixteen,
    most: float = PATCH_VOXELS,
) -> Plan:
    """The plan; whatever ``data`` sets wins over what the fingerprint suggests.

    ``stride`` tells what patches the network can take, ``most`` how many voxels a planned one may
    hold. Raises InputError for a patch that the network cannot take.
    """
    spacing = data.spacing or plan_spacing(found)
    crop = found.lost == 0 if data.crop is None else data.crop
    shapes = found.shapes if crop else found.whole
    shape = np.median(shapes * found.spacings / np.array(spacing), axis=0)
    patch = data.patch or plan_patch(shape, spacing, stride, most)
    step = stride(patch, spacing)
    if not fits(patch, step):
        raise InputError(
            f"data.patch = {list(patch)}: every side must be a multiple of {multiples(step)}"
        )
    masked = bool(np.median(found.inside) < MASKED)
    return Plan(
        channels=dataset.channels,
        classes=dataset.classes,
        ignore=dataset.ignore,
        orientation=data.orientation,
        spacing=spacing,
        crop=crop,
        normalization=tuple(
            _normalization(scheme, found.foreground[:, channel], masked, data)
            for channel, scheme in enumerate(schemes_of(dataset.channels, data))
        ),
        patch=patch,
        codes=dict(dataset.codes),
    )


def check_plan(plan: Plan, dataset: Dataset) -> None:
    """InputError unless ``plan``, which may come from another data set, fits this one."""
    for what, ours, theirs in (
        ("channels", dataset.channels, plan.channels),
        ("classes", dataset.classes, plan.classes),
    ):
        if len(ours) != len(theirs):
            raise InputError(
                f"{dataset.root}: has {len(ours)} {what} ({', '.join(ours)}), but the plan is made "
                f"for {len(theirs)} ({', '.join(theirs)}); give another plan, or none"
            )
        moved = next((n for i, n in enumerate(ours) if n in theirs and theirs[i] != n), None)
        if moved is not None:
            raise InputError(
                f"{dataset.root}: numbers its {what} in another way than the plan "
                f"({', '.join(ours)}; {', '.join(theirs)}); give another plan, or none"
            )
    if dataset.ignore != plan.ignore:
        raise InputError(
            f"{dataset.root}: ignores the label {dataset.ignore}, but the plan {plan.ignore}; give "
            "another plan, or none"
        )


def is_anisotropic(spacing: Iterable[float]) -> bool:
    """Whether the axis of the longest voxels is a coarse one; ``spacing`` in mm."""
    sizes = [*spacing]
    return bool(max(sizes) > ANISOTROPIC * min(sizes))


def plan_spacing(found: Fingerprint) -> tuple[float, float, float]:
    """Median spacing in mm; on a coarse axis the 10th percentile, so that detail is not lost."""
    spacing = np.median(found.spacings, axis=0)
    if is_anisotropic(spacing):
        coarse = int(spacing.argmax())
        spacing[coarse] = np.percentile(found.spacings[:, coarse], 10)
    rounded = [round(float(s), 4) for s in spacing]
    return rounded[0], rounded[1], rounded[2]


def plan_patch(
    shape: NDArray[np.float64],
    spacing: Triple = (1.0, 1.0, 1.0),
    stride: StrideOf = sixteen,
    most: float = PATCH_VOXELS,
) -> Patch:
    """Patch in voxels: the median volume to the nearest multiple of the network's stride.

    The longest side shrinks until the patch holds at most ``most`` voxels. With few labels the cube
    that this tends to is better than the proportions of the volume (docs/tried.md).
    """
    x, y, z = (max(1, round(size)) for size in shape)
    step = stride((x, y, z), spacing)
    patch = [max(k, round(size / k) * k) for size, k in zip(shape, step, strict=True)]
    while np.prod(patch) > most and any(np.array(patch) > step):
        longest = int(np.argmax(np.where(np.array(patch) > step, patch, 0)))
        patch[longest] -= step[longest]
    return patch[0], patch[1], patch[2]


def fits(patch: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether every side of a patch is a multiple of the stride along it."""
    return not any(side % step for side, step in zip(patch, stride, strict=True))


def multiples(stride: Sequence[int]) -> str:
    """What the sides of a patch must be multiples of, in words."""
    if len(set(stride)) == 1:
        return str(stride[0])
    *first, last = map(str, stride)
    return f"{', '.join(first)} and {last}, one for each axis"


def schemes_of(channels: Sequence[str], data: DataConfig) -> list[str]:
    """One of ``MEANINGS`` for each channel: by ``data.modality``, else by the channel's name as
    nnU-Net reads it, else z-score per scan. Only "ct" looks at intensities of labelled voxels.

    A ``data.window`` is for the channels of CT. If there is none, it is for those of z-score.
    """
    fixed = {"mr": "zscore", "ct": "ct", "normalized": "none"}
    chosen = [
        fixed[data.modality] if data.modality else MEANINGS.get(name.strip().lower(), "zscore")
        for name in channels
    ]
    if data.window is None or "ct" in chosen:
        return chosen
    return ["ct" if scheme == "zscore" else scheme for scheme in chosen]


def _normalization(
    chosen: str, values: NDArray[np.float32], masked: bool, data: DataConfig
) -> Normalization:
    """By the scheme ``chosen``; CT is clipped and scaled by the labelled foreground."""
    if chosen == "none":
        return Normalization(scheme="none")
    if chosen == "minmax":
        return Normalization(scheme="minmax")
    if chosen == "rgb":
        return Normalization(scheme="window", low=0, high=255, mean=0, std=255)
    if chosen == "zscore":
        return Normalization(masked=masked)
    if len(values) == 0:
        raise InputError(
            "no labelled case shows a foreground voxel, by which intensities are scaled; label "
            "one, or give the plan of a training (--plan RUN/config.yaml)"
        )
    low, high = data.window or (float(q) for q in np.percentile(values, (0.5, 99.5)))
    clipped = np.clip(values.astype(np.float64), low, high)
    return Normalization(
        scheme="window",
        low=low,
        high=high,
        mean=float(clipped.mean()),
        std=max(float(clipped.std()), 1e-8),
    )
