"""Volumes on disk: one reader and one writer for every format.

Arrays keep the file's own axes (X, Y, Z); an affine maps voxel indices to RAS+ world mm, whatever
convention the file has. How bytes become arrays is told in dcamt.data.formats.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dcamt.data.formats import FORMATS, dicom, ending_of, format_of, nifti
from dcamt.data.formats.hdf5 import Part
from dcamt.data.formats.stored import Forms, Stored
from dcamt.data.grid import (
    GRID_TOLERANCE,
    Array,
    apart,
    in_c_order,
    is_nowhere,
    is_sheared,
    onto,
    reorient,
    shear_angle,
)
from dcamt.errors import CannotHold, InputError
from dcamt.files import atomic, check_fetched

WHOLE_TOLERANCE = 1e-3
"""Distance from a whole number that a label may have: labels stored scaled come back as 0.99999."""
LARGEST_LABEL = int(np.iinfo(np.int16).max)


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume and its place in the scanner.

    array: image (C, X, Y, Z) float32, or label (X, Y, Z) int16.
    affine: (4, 4) float64, voxel index -> RAS+ mm.
    forms: both transforms of a NIfTI header, for what is written on the same voxels.
    remarks: what a user should know of the file; sentences without its name.
    """

    array: Array
    affine: Array
    forms: Forms | None = None
    remarks: tuple[str, ...] = ()

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along X, Y, Z."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along X, Y, Z."""
        x, y, z = self.array.shape[-3:]
        return x, y, z


def read_image(paths: Sequence[Path], series: int | None = None, ordered: bool = True) -> Volume:
    """Read an image: one file per channel, one file of all channels, or a folder of DICOM slices.

    Returns (C, X, Y, Z) float32 along the axes of the first file, in C order. If it need not be
    ``ordered``, it stays in the order of the file, which takes half the time. ``series`` says which
    one of several in a DICOM folder, from 1. Raises InputError for files that cannot be read,
    are not volumes, hold NaN or infinite values, or do not share one grid.
    """
    volumes = []
    for path in paths:
        stored = _read(path, np.float32, "image", series)
        array = stored.array
        if array.ndim > 4 or (array.ndim == 4 and len(paths) > 1):
            expected = (
                "3D: one file per channel" if len(paths) > 1 else "3D, or 4D: X, Y, Z, channel"
            )
            raise InputError(
                f"{path}: the image is {array.ndim}D with shape {array.shape}, but must be "
                f"{expected}; export the channels again"
            )
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        if bad:
            raise InputError(
                f"{path}: NaN or infinite intensities (as float32) in {bad} of {array.size} "
                "voxels; replace them (for instance by the background's value)"
            )
        channels = array[np.newaxis] if array.ndim == 3 else np.moveaxis(array, -1, 0)
        volume = Volume(channels, stored.affine, stored.forms, stored.remarks)
        volumes.append(replace(volume, remarks=(*volume.remarks, *_oddities(volume))))
    first = volumes[0]
    for index in range(1, len(volumes)):
        volumes[index] = aligned(first, volumes[index], paths[0], paths[index], "channel")
    arrays = [volume.array for volume in volumes]
    array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    if ordered and not (array.flags.c_contiguous and array.flags.writeable):
        array = in_c_order(array)
    remarks = dict.fromkeys(remark for volume in volumes for remark in volume.remarks)
    return Volume(array, first.affine, first.forms, tuple(remarks))


def read_label(path: Path, ordered: bool = True) -> Volume:
    """Read a label: whole numbers from 0 to 32767.

    Returns (X, Y, Z) int16, ``ordered`` as ``read_image`` has it. Raises InputError for a file
    that cannot be read, is not 3D, or holds negative or fractional values.
    """
    stored = _read(path, None, "label")
    array = stored.array
    if array.ndim > 3:
        raise InputError(
            f"{path}: the label is {array.ndim}D with shape {array.shape}, but must be 3D with one "
            "class number per voxel; merge one-hot or repeated volumes into one"
        )
    whole = array
    if array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # NaN, infinity minus infinity
            whole = np.rint(array)
            bad = int(np.count_nonzero(~(np.abs(array - whole) <= WHOLE_TOLERANCE)))
        if bad:
            raise InputError(
                f"{path}: label values that are not whole numbers in {bad} of {array.size} voxels; "
                "export it as integers and resample labels with nearest neighbour only"
            )
    lowest, highest = whole.min(), whole.max()
    if lowest < 0 or highest > LARGEST_LABEL:
        raise InputError(
            f"{path}: label values run from {lowest:.0f} to {highest:.0f}, but must lie between 0 "
            f"and {LARGEST_LABEL}; remap them to 0, 1, 2, ..."
        )
    array = in_c_order(whole, np.int16) if ordered else whole.astype(np.int16, copy=False)
    return Volume(array, stored.affine, stored.forms, stored.remarks)


def write_volume(path: Path, array: Array, affine: Array, forms: Forms | None = None) -> None:
    """Write a volume (X, Y, Z) in the format that the file's ending names, atomically.

    Integers and booleans take the smallest integer type that holds them, other numbers float32.
    ``forms`` are the transforms of a NIfTI scan on the same voxels: a NIfTI file gets them as they
    are. Missing parent folders are made. Raises InputError if the file cannot be written, or the
    format cannot hold the affine.
    """
    write = FORMATS[_ending(path)].write
    if write is None:
        raise InputError(f"{path}: this format is read only; use .nii.gz, .nrrd or .mha")
    if array.ndim != 3:
        raise ValueError(f"a volume has three axes, not shape {array.shape}")
    check_can_hold(path, Volume(array, affine, forms))
    dtype: np.dtype[Any] = np.dtype(np.float32)
    if array.dtype.kind in "biu":
        dtype = np.result_type(*(np.min_scalar_type(int(v)) for v in (array.min(), array.max())))
    with atomic(path) as temporary:
        write(temporary, array.astype(dtype), affine, forms)


def check_can_hold(path: Path, volume: Volume) -> None:
    """Raise CannotHold if ``path`` is a NIfTI file, in which many a reader would turn the volume.

    NIfTI's qform cannot hold axes that are not at right angles, and readers differ in whether they
    take it or the sform. A volume that was NIfTI itself may be written as it was.
    """
    if FORMATS[_ending(path)].kind != nifti.KIND or volume.forms is not None:
        return
    if is_sheared(volume.affine, volume.shape):
        raise CannotHold(
            f"{path}: NIfTI cannot hold this scan in a way that all programs read alike, because "
            f"its axes are {shear_angle(volume.affine):.3g} degrees off a right angle, as of a "
            "tilted gantry; write NRRD or MetaImage instead (--format nrrd or mha)"
        )


def aligned(
    image: Volume, label: Volume, image_path: Path, label_path: Path, what: str = "label"
) -> Volume:
    """The label, or whatever ``what`` is, on the image's voxels: axes permuted and flipped to them.

    Nothing is interpolated. Two grids are one if their corners lie on each other (see
    GRID_TOLERANCE) by one of the transforms that each file has. Raises InputError for any other.
    """
    for target, affine in itertools.product(_transforms(image), _transforms(label)):
        axes, turned = onto(affine, label.shape, target)
        array = reorient(label.array, axes)
        if array.shape[-3:] != image.shape:
            continue
        if apart(target, turned, image.shape)[1] <= GRID_TOLERANCE:
            array = array if array.flags.forc else np.ascontiguousarray(array)
            return replace(label, array=array, affine=image.affine, forms=image.forms)
    _refuse_grid(image, label, image_path, label_path, what)


def check_channels(image: Volume, channels: Sequence[str], path: Path) -> None:
    """Raise InputError unless the image has as many channels as the data set names."""
    if len(image.array) != len(channels):
        raise InputError(
            f"{path}: the number of channels is {len(image.array)}, but the data set names "
            f"{len(channels)} ({', '.join(channels)}); correct the image, or declare its channels "
            "in dataset.json"
        )


def _oddities(image: Volume) -> Iterator[str]:
    """What is odd about an image of any format, though it can be read."""
    if is_sheared(image.affine, image.shape):
        yield (
            f"the axes are {shear_angle(image.affine):.3g} degrees off a right angle; distances in "
            "mm are measured as if it were right, and programs differ in how they show the scan"
        )
    if any(channel.min() == channel.max() for channel in image.array):
        yield "all intensities of a channel are equal; export the image again"


def _transforms(volume: Volume) -> list[Array]:
    """Every affine that a reader may take for the volume's, its own first."""
    forms = volume.forms
    others = [] if forms is None else [forms.sform, forms.qform]
    return [volume.affine, *(other for other in others if other is not None)]


def _refuse_grid(
    image: Volume, label: Volume, image_path: Path, label_path: Path, what: str
) -> NoReturn:
    advice = f"resample the {what} onto the image's grid, or take the file that belongs to it"
    axes, affine = onto(label.affine, label.shape, image.affine)
    if reorient(label.array, axes).shape[-3:] != image.shape:
        raise InputError(
            f"{label_path}: the {what} has {_size(label.shape)} voxels, but {image_path} has "
            f"{_size(image.shape)}; {advice}"
        )
    if is_nowhere(label.affine) != is_nowhere(image.affine):
        lost, other = label_path, image_path
        if is_nowhere(image.affine):
            lost, other = other, lost
        raise InputError(
            f"{lost}: says nothing of its place in space (voxels of 1 mm, origin 0), unlike "
            f"{other}; if the two have the same voxels, save it again with the other's geometry"
        )
    mm, voxels = apart(image.affine, affine, image.shape)
    raise InputError(
        f"{label_path}: the {what} lies up to {mm:.3g} mm ({voxels:.3g} voxels) from {image_path}; "
        f"{advice}"
    )


def _read(path: Path, dtype: Any, part: Part, series: int | None = None) -> Stored:
    """What is stored, without axes of length 1 after the third.

    dtype None keeps the file's own.
    """
    check_fetched(path)
    if path.is_dir() and dicom.is_series(path):
        if part == "label":
            raise InputError(
                f"{path}: is a folder of DICOM slices, which no label is read from; convert it to "
                "one file, such as .nii.gz or .nrrd"
            )
        return dicom.read(path, series)
    with np.errstate(over="ignore", invalid="ignore"):
        stored = format_of(path).read(path, dtype, part)
    array = stored.array
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return replace(stored, array=array)


def _ending(path: Path) -> str:
    ending = ending_of(path.name)
    if ending is None:
        raise InputError(f"{path}: unsupported file ending; use one of {', '.join(FORMATS)}")
    return ending


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
