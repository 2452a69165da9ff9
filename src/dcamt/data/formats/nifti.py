"""NIfTI-1 and NIfTI-2, plain or gzipped, whatever the file's name says of that."""

import io
import logging
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from dcamt.data.formats.content import START_BYTES, is_packed, start_of
from dcamt.data.formats.guard import (
    DEFLATE_LIMIT,
    check_axes,
    check_claim,
    contents,
    file_size,
    inflate,
    reading,
)
from dcamt.data.formats.stored import Forms, Stored
from dcamt.data.grid import GRID_TOLERANCE, Array, apart, is_sheared, is_usable, millimetres
from dcamt.errors import InputError

KIND = "NIfTI"
UNITS = {1: "m", 2: "mm", 3: "um"}
"""Of length, by the three lowest bits of xyzt_units."""
_QUIET = logging.Logger("nibabel's checks", logging.CRITICAL)  # they quote the header
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)


def read(path: Path, dtype: Any) -> Stored:
    """Values (X, Y, Z) or (X, Y, Z, channel), scaled, and the affine (voxel -> RAS+ mm).

    Axes of length 1 after the third are left out: ITK puts one between space and channels.
    ``dtype`` None keeps the file's own type.
    """
    with reading(path, KIND):
        size, packed = file_size(path), is_packed(path)
        # Extensions are not looked at: they claim their own size, and are not needed.
        stored = _header(path, start_of(path))
        header = stored.copy()
        header.check_fix(_QUIET, error_level=40)
        shape, kind = header.get_data_shape(), header.get_data_dtype()
        offset = header.get_data_offset()
    if kind.kind not in "iuf":
        raise InputError(f"{path}: holds colours or complex numbers; save one number a voxel")
    if len(shape) < 3 or min(shape) < 1:
        raise InputError(
            f"{path}: a volume needs three axes, but this has shape {shape}; stack the slices first"
        )
    voxels = math.prod(shape)
    ratio = DEFLATE_LIMIT if packed else 1
    check_claim(path, voxels, kind.itemsize, size - offset // ratio, ratio)
    affine, forms, remarks = _geometry(path, stored, header)
    with reading(path, KIND), np.errstate(over="ignore", invalid="ignore"):
        file: Any = path
        if packed:  # to its end, because only there is the checksum that tells damage
            file = io.BytesIO(inflate(path, contents(path), offset + voxels * kind.itemsize))
        else:
            file = path.open("rb")
        with file:
            array = np.asarray(nib.arrayproxy.ArrayProxy(file, header, mmap=False), dtype=dtype)
    kept = tuple(n for n in shape[3:] if n > 1)
    return Stored(array.reshape(*shape[:3], *kept, order="F"), affine, forms, remarks)


def write(path: Path, array: Array, affine: Array, forms: Forms | None = None) -> None:
    """Write (X, Y, Z) in millimetres.

    With the ``forms`` of a scan on the same voxels, sform and qform are the scan's, so that it and
    what is written lie on each other whichever of the two a reader takes. Otherwise both get the
    affine and code 1 (scanner), so that nibabel, ITK and viewers agree.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    forms = forms or Forms(affine, 1, affine, 1, spacing)
    image = nib.Nifti1Image(array, None, dtype=array.dtype)
    header = image.header
    header.set_xyzt_units("mm")
    header["pixdim"][1:4] = forms.spacing
    if forms.qform is not None:
        header.set_qform(forms.qform, forms.qform_code)
    if forms.sform is not None:
        header.set_sform(forms.sform, forms.sform_code)
    nib.save(image, path)


def _header(path: Path, start: bytes) -> Any:
    """The header as it is stored, nothing mended."""
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if kind.may_contain_header(start[:START_BYTES]):
            header = kind(start[: kind.sizeof_hdr], check=False)
            if header["magic"].item() != header.single_magic:
                raise InputError(
                    f"{path}: is the header of a pair (.hdr and .img); convert the pair to .nii.gz"
                )
            return header
    raise ValueError("no header")


def _geometry(path: Path, stored: Any, header: Any) -> tuple[Array, Forms, tuple[str, ...]]:
    """The affine that counts, both transforms, and what a user should know of them.

    The sform counts, as for nibabel, unless it is broken or visibly sheared and the qform is
    sound; the voxel sizes alone where the header holds neither. ``stored`` is the header before
    ``header`` was mended: a spacing of 0 has become 1 there.
    """
    (factor,), remarks = millimetres([UNITS.get(int(header["xyzt_units"]) & 7, "")])
    to_mm = np.diag([factor, factor, factor, 1.0])
    shape = header.get_data_shape()[:3]
    with np.errstate(invalid="ignore"):
        spacing = np.abs(np.asarray(stored["pixdim"][1:4], dtype=np.float64)) * factor
    sized = bool(np.isfinite(spacing).all() and (spacing > 0).all())
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    if not sform_code and not qform_code:
        affine = to_mm @ header.get_base_affine() if sized else np.zeros((4, 4))
        check_axes(path, affine)
        return affine, Forms(None, 0, None, 0, spacing), remarks
    sform = _usable(to_mm @ header.get_sform()) if sform_code else None
    qform = _usable(to_mm @ _qform(header)) if qform_code and sized else None
    if sform is None and qform is None:
        check_axes(path, np.zeros((4, 4)))
    if sform_code and sform is None:
        remarks += ("the sform of the header is not usable; its qform is taken",)
        sform, sform_code = qform, qform_code
    if qform_code and qform is None:
        remarks += ("the qform of the header is not usable; its sform is taken",)
        sheared = sform is not None and is_sheared(sform, shape)
        qform, qform_code = (None, 0) if sheared else (sform, sform_code)
    affine = qform if sform is None else sform
    assert affine is not None
    if sform is not None and qform is not None:
        mm, voxels = apart(sform, qform, shape)
        if voxels > GRID_TOLERANCE:
            affine = qform if is_sheared(sform, shape) else sform
            taken = (
                "qform is taken, as the sform is sheared" if affine is qform else "sform is taken"
            )
            remarks += (f"sform and qform of the header differ by up to {mm:.3g} mm; the {taken}",)
    own = np.linalg.norm(affine[:3, :3], axis=0)
    if not sized or qform is not None:
        spacing = own
    elif (np.abs(spacing / own - 1) * shape).max() > GRID_TOLERANCE:
        remarks += ("the header's voxel sizes (pixdim) are not those of its sform, which is taken",)
    return affine, Forms(sform, sform_code, qform, qform_code, spacing), remarks


def _qform(header: Any) -> Array:
    """The qform, of NaN where its quaternion is none."""
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except ValueError:
        return np.full((4, 4), np.nan)


def _usable(affine: Array) -> Array | None:
    return np.asarray(affine, dtype=np.float64) if is_usable(affine) else None
