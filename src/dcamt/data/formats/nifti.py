"""NIfTI-1 and NIfTI-2, plain or gzipped."""

import io
import logging
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

from dcamt.data.formats.guard import (
    DEFLATE_LIMIT,
    Array,
    check_axes,
    check_claim,
    contents,
    file_size,
    inflate,
    reading,
)
from dcamt.data.formats.stored import Stored
from dcamt.errors import InputError

KIND = "NIfTI"
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # it prints what it mends


class _NoExtensions(nib.nifti1.Nifti1Extensions):  # type: ignore[misc]
    """Extensions are not needed, and claim their own size: a small file could fill the memory."""

    @classmethod
    def from_fileobj(cls, fileobj: Any, size: int, byteswap: bool) -> "_NoExtensions":
        return cls()


class _Header1(nib.Nifti1Header):  # type: ignore[misc]
    exts_klass = _NoExtensions


class _Header2(nib.Nifti2Header):  # type: ignore[misc]
    exts_klass = _NoExtensions


class _Image1(nib.Nifti1Image):  # type: ignore[misc]
    header_class = _Header1


class _Image2(nib.Nifti2Image):  # type: ignore[misc]
    header_class = _Header2


def read(path: Path, dtype: Any) -> Stored:
    """Values (X, Y, Z, ...) with scale and offset applied, and the affine (voxel -> RAS+ mm).

    ``dtype`` None keeps the file's own type.
    """
    packed = path.name.lower().endswith(".gz")
    with reading(path, KIND):
        size = file_size(path)
        kind = next(k for k in (_Image1, _Image2) if k.path_maybe_image(path)[0])
        image: Any = kind.from_filename(path, mmap=False)
        shape, stored = image.shape, image.get_data_dtype()
        offset = int(image.dataobj.offset)  # the header itself forgets it on loading
    if stored.kind not in "iuf":
        raise InputError(f"{path}: holds colours or complex numbers; export it as one grey channel")
    if len(shape) < 3 or min(shape) < 1:
        raise InputError(
            f"{path}: a volume needs three axes, but this has shape {shape}; stack the slices first"
        )
    voxels = math.prod(shape)
    ratio = DEFLATE_LIMIT if packed else 1
    check_claim(path, voxels, stored.itemsize, size - offset // ratio, ratio)
    affine = _affine(image, path)
    with reading(path, KIND), np.errstate(over="ignore", invalid="ignore"):
        if packed:  # to its end, because only there is the checksum that tells damage
            content = inflate(path, contents(path), offset + voxels * stored.itemsize)
            image = type(image).from_stream(io.BytesIO(content))
        return Stored(np.asarray(image.dataobj, dtype=dtype), affine)


def write(path: Path, array: Array, affine: Array) -> None:
    """Write (X, Y, Z) in millimetres.

    sform and qform get the same affine and code 1 (scanner), so that nibabel, ITK and viewers
    agree; a qform cannot hold shear, so a sheared affine keeps it in the sform alone.
    """
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _affine(image: Any, path: Path) -> Array:
    affine: Array = np.asarray(image.affine, dtype=np.float64)
    if image.header["sform_code"] == 0:
        # nibabel replaces a spacing of 0 by 1 mm on loading: look at the header as it is stored
        with reading(path, KIND), ImageOpener(path) as file:
            stored = type(image.header).from_fileobj(file, check=False)
            spacing = np.abs(np.asarray(stored["pixdim"][1:4], dtype=np.float64))
        if not (np.isfinite(spacing).all() and (spacing > 0).all()):
            affine = np.zeros((4, 4))
    check_axes(path, affine)
    return affine
