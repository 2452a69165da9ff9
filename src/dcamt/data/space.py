"""From a scan's own voxels to the network's, and back.

Reorient, crop to the content, resample, normalise; the way back is carried by a Placement. Arrays
are ``(C, X, Y, Z)``, spacings in mm.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from nibabel import orientations
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes

from dcamt.config import Normalization, Plan
from dcamt.data.grid import Box, bounding_box, reorient
from dcamt.data.volume import Volume
from dcamt.memory import check_fits
from dcamt.types import IGNORE

Shape = tuple[int, int, int]
Array = NDArray[Any]


@dataclass(frozen=True)
class Placement:
    """Where a prepared array lies in its scan: what ``restore`` needs."""

    shape: Shape  # of the scan, its own axis order
    affine: NDArray[np.float64]  # (4, 4), scan voxel to RAS+ mm
    axes: NDArray[np.float64]  # (3, 2), nibabel orientation change, scan to prepared
    box: Box  # content, in reoriented voxels
    cropped: Shape  # voxels of the box


def place(image: Volume, orientation: str, crop: bool) -> tuple[Array, Placement]:
    """Reorient ``image`` and crop it to its content; returns ``(C, X, Y, Z)`` and where it lay.

    Content is the box of all voxels that differ from zero in any channel; a scan of nothing but
    zeros is kept whole.
    """
    wanted = orientations.axcodes2ornt(tuple(orientation))
    axes = orientations.ornt_transform(orientations.io_orientation(image.affine), wanted)
    array = reorient(image.array, axes)
    content = bounding_box((array != 0).any(0)) if crop else None
    box = content or (slice(None), slice(None), slice(None))
    array = array[:, *box]
    cropped = (array.shape[1], array.shape[2], array.shape[3])
    return array, Placement(image.shape, image.affine, axes, box, cropped)


def spacing_along(image: Volume, placement: Placement) -> tuple[float, float, float]:
    """Voxel size in mm along the prepared axes."""
    spacing = [0.0, 0.0, 0.0]
    for axis, target in enumerate(placement.axes[:, 0].astype(int)):
        spacing[target] = image.spacing[axis]
    return spacing[0], spacing[1], spacing[2]


def to_network(image: Volume, plan: Plan) -> tuple[NDArray[np.float32], Placement]:
    """A scan as the network sees it, ``(C, x, y, z)`` float32 at ``plan.spacing``."""
    array, placement = place(image, plan.orientation, plan.crop)
    shape = resampled_shape(placement.cropped, spacing_along(image, placement), plan)
    inside: NDArray[np.bool_] | None = None
    if any(how.masked for how in plan.normalization):
        filled = binary_fill_holes((array != 0).any(0)).astype(np.float32)
        inside = (resample(torch.from_numpy(filled)[None], shape)[0] >= 0.5).numpy()
    resampled = resample(torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)), shape)
    del array
    prepared = np.empty(resampled.shape, np.float32)
    for target, channel, how in zip(prepared, resampled.numpy(), plan.normalization, strict=True):
        target[...] = normalize(channel, how, inside)
    return prepared, placement


def label_to_network(label: Volume, placement: Placement, plan: Plan) -> NDArray[np.int8]:
    """A label on the voxels of the prepared image, ``(x, y, z)`` int8, ignored voxels as IGNORE."""
    array = reorient(label.array, placement.axes)[placement.box].astype(np.int16)
    if plan.ignore is not None:
        array[array == plan.ignore] = IGNORE
    shape = resampled_shape(placement.cropped, spacing_along(label, placement), plan)
    if shape == array.shape:
        return array.astype(np.int8)
    values = np.unique(array)
    best = torch.full(shape, -1.0)
    result = torch.zeros(shape, dtype=torch.int8)
    for value in values:
        share = resample(torch.from_numpy((array == value).astype(np.float32))[None], shape)[0]
        result[share > best] = int(value)
        best = torch.maximum(best, share)
    return result.numpy()


def lost_labels(label: Volume, placement: Placement, ignore: int | None = None) -> tuple[int, int]:
    """Labelled voxels that the crop cuts away, and labelled voxels in all.

    Labelled are values above 0 but ``ignore``, which says that nobody annotated a voxel. The crop
    follows the image alone, so that training and prediction see one and the same; a label outside
    it can be neither learnt nor found.
    """
    values = reorient(label.array, placement.axes)
    labelled = values > 0 if ignore is None else (values > 0) & (values != ignore)
    there = int(np.count_nonzero(labelled))
    return there - int(np.count_nonzero(labelled[placement.box])), there


def restore(values: torch.Tensor, placement: Placement) -> NDArray[np.float32]:
    """Prepared values ``(N, x, y, z)`` on the scan's own voxels, ``(N, X, Y, Z)`` float32.

    Voxels outside the crop get 0.
    """
    full = np.zeros((len(values), *reoriented_shape(placement)), np.float32)
    for k in range(len(values)):  # one by one: a second copy of all of them would be the peak
        full[k, *placement.box] = resample(values[k : k + 1].float(), placement.cropped)[0]
    return from_prepared(full, placement)


def from_prepared(values: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    """Values ``(N, x, y, z)`` of the whole scan along the scan's own axes, ``(N, X, Y, Z)``."""
    return reorient(values, _inverse(placement.axes))


def normalize(
    channel: Array, how: Normalization, inside: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Apply one channel's Normalization; a constant image becomes zeros.

    ``inside`` tells the voxels that count where the Normalization is masked.
    """
    values: NDArray[np.float32] = channel.astype(np.float32)
    if how.scheme == "none":
        return values
    if how.scheme == "window":
        values = np.clip(values, how.low, how.high)
        return ((values - np.float32(how.mean)) / np.float32(how.std)).astype(np.float32)
    if how.scheme == "minmax":
        low, high = float(values.min()), float(values.max())
        return ((values - low) / max(high - low, 1e-8)).astype(np.float32)
    masked = how.masked and inside is not None and bool(inside.any())
    counted = values[inside] if masked else values
    mean, std = float(counted.mean(dtype=np.float64)), float(counted.std(dtype=np.float64))
    scaled: NDArray[np.float32] = ((values - mean) / max(std, 1e-8)).astype(np.float32)
    if masked:
        scaled[~inside] = 0  # type: ignore[operator]
    return scaled


def _inverse(axes: NDArray[np.float64]) -> NDArray[np.float64]:
    inverse = np.empty_like(axes)
    for axis, (target, flip) in enumerate(axes):
        inverse[int(target)] = axis, flip
    return inverse


def reoriented_shape(placement: Placement) -> Shape:
    """Voxels of the whole scan along the prepared axes."""
    shape = [0, 0, 0]
    for axis, target in enumerate(placement.axes[:, 0].astype(int)):
        shape[target] = placement.shape[axis]
    return shape[0], shape[1], shape[2]


def resampled_shape(shape: Shape, spacing: tuple[float, float, float], plan: Plan) -> Shape:
    """Voxels at ``plan.spacing`` of ``shape`` voxels of ``spacing`` mm; InputError if too many."""
    extents = [n * s / t for n, s, t in zip(shape, spacing, plan.spacing, strict=True)]
    wanted = " x ".join(f"{t:g}" for t in plan.spacing)
    # Resampled, normalised, and what normalising one channel takes beside.
    needed = 4 * math.prod(max(1.0, n) for n in extents) * (2 * len(plan.channels) + 3)
    what = f"a scan resampled to {wanted} mm (data.spacing)"
    check_fits(needed, what, "crop the scan, or train with a coarser data.spacing")
    sizes = [max(1, round(n)) for n in extents]
    return sizes[0], sizes[1], sizes[2]


def resample(values: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Trilinear, ``(N, x, y, z)`` to ``(N, *shape)``; both grids cover the same extent."""
    if values.shape[1:] == shape:
        return values
    return F.interpolate(values[None], size=shape, mode="trilinear", align_corners=False)[0]
