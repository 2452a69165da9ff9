"""A case as the viewer takes it: small NIfTI files of its scan, label and segmentations."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from dcamt.data.grid import Array, Box, onto, reorient
from dcamt.reporting.planes import view_box

VOXELS = 8_000_000
"""That a case shows at most. A viewer needs some 20 bytes of a graphics card for each."""
_SAMPLE = 1_000_000
"""Voxels whose intensities tell the window."""


@dataclass(frozen=True)
class Layers:
    """What is shown of a case, all on the voxels of the scan.

    scan: (X, Y, Z) intensities of one channel. affine: (4, 4) voxel -> RAS+ mm. reference:
    (X, Y, Z) label values. predictions: as many segmentations as are shown side by side.
    uncertainty: of each of them a map (X, Y, Z), 0 to 1, or None.
    """

    scan: Array
    affine: NDArray[np.float64]
    reference: Array | None
    predictions: Sequence[Array]
    uncertainty: Sequence[Array | None]


@dataclass(frozen=True)
class ShownCase:
    """A case of a viewer: its name, what is told beside it, and how its files are read.

    facts: text by its heading. read: raises InputError if a file cannot be read. flagged: whether
    something is wrong with the case.
    """

    name: str
    read: Callable[[], Layers]
    facts: Mapping[str, str] = field(default_factory=dict)
    flagged: bool = False


def pack(layers: Layers, whole: bool = False, limit: int = VOXELS) -> bytes:
    """A line of JSON, the length of each file by its name in their order, and then the files.

    The files are NIfTI on the nearest RAS axes: "scan", and "reference", "prediction-0",
    "uncertainty-0" and so on where there are such. They hold the surroundings of the structures, or
    all of the scan if it is ``whole`` or has no structures. Above ``limit`` voxels every second,
    fourth, ... voxel along an axis is taken, which the header's description tells: "step 2 2 1".
    All are 8-bit: the scan from its 0.5th to its 99.5th percentile, uncertainty in steps of 1/255;
    labels above 255 are 255.
    """
    labels = {"reference": layers.reference}
    labels |= {f"prediction-{n}": array for n, array in enumerate(layers.predictions)}
    present = {name: array for name, array in labels.items() if array is not None}
    spacing = np.linalg.norm(layers.affine[:3, :3], axis=0)
    box: Box = (slice(None), slice(None), slice(None))
    if present and not whole:
        box = view_box(reduce(np.logical_or, (a > 0 for a in present.values())), spacing)
    bounds = [s.indices(n)[:2] for s, n in zip(box, layers.scan.shape, strict=True)]
    start, stop = zip(*bounds, strict=True)
    step = _step(np.subtract(stop, start), spacing, limit)
    part = tuple(slice(a, b, s) for a, b, s in zip(start, stop, step, strict=True))
    affine = layers.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start
    affine[:3, :3] *= step
    about = f"step {step[0]} {step[1]} {step[2]}"

    files = {"scan": _scan(layers.scan[part], affine, about)}
    for name, array in present.items():
        files[name] = _nifti(np.minimum(array[part], 255).astype(np.uint8), affine, about)
    for n, values in enumerate(layers.uncertainty):
        if values is not None:
            scaled = (255 * values[part].clip(0, 1)).round().astype(np.uint8)
            files[f"uncertainty-{n}"] = _nifti(scaled, affine, about, 1 / 255)
    lengths = json.dumps({name: len(data) for name, data in files.items()})
    return b"".join((lengths.encode("ascii"), b"\n", *files.values()))


def _step(shape: NDArray[Any], spacing: NDArray[np.float64], limit: int) -> list[int]:
    """Every how many-th voxel is taken along each axis: the finest axis is thinned first."""
    step = [1, 1, 1]
    while math.prod(-(-n // s) for n, s in zip(shape, step, strict=True)) > limit:
        axis = min(range(3), key=lambda a: (spacing[a] * step[a], -shape[a]))
        step[axis] *= 2
    return step


def _scan(array: Array, affine: NDArray[np.float64], about: str) -> bytes:
    sample = array.ravel("K")[:: max(1, array.size // _SAMPLE)]
    low, high = (float(v) for v in np.percentile(sample, [0.5, 99.5]))
    high = high if high > low else low + 1
    slope = (high - low) / 255
    scaled = array.astype(np.float32)
    scaled -= low
    scaled /= slope
    np.clip(scaled, 0, 255, out=scaled)
    return _nifti((scaled + 0.5).astype(np.uint8), affine, about, slope, low)


def _nifti(
    array: NDArray[np.uint8],
    affine: NDArray[np.float64],
    about: str,
    slope: float = 1.0,
    intercept: float = 0.0,
) -> bytes:
    """A NIfTI-1 file in memory; values are ``slope`` times those of the array + ``intercept``."""
    axes, affine = onto(affine, array.shape, np.eye(4))
    array = reorient(array, axes)
    header = nib.Nifti1Header()
    header.set_data_shape(array.shape)
    header.set_data_dtype(np.uint8)
    header.set_xyzt_units("mm")
    header.set_sform(affine, 1)
    header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    header["magic"], header["vox_offset"] = b"n+1", 352
    header["scl_slope"], header["scl_inter"] = slope, intercept
    header["descrip"] = about.encode("ascii")
    return b"".join((header.binaryblock, bytes(4), array.tobytes("F")))
