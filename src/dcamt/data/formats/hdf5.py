"""HDF5 as the semi-supervised literature keeps it: datasets `image` and `label` in one file.

Such a file says nothing of the scanner: without the attribute `affine`, which dcamt writes, voxels
are 1 mm wide and the origin is 0, so that distances in mm are the voxels the literature reports.
"""

import io
import math
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from dcamt.data.formats.guard import DEFLATE_LIMIT, check_axes, check_claim, file_size, reading
from dcamt.data.formats.stored import Stored
from dcamt.data.grid import Array
from dcamt.errors import InputError

KIND = "HDF5"
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
"""Filters that the library itself has; others would be loaded from plug-ins."""
AFFINE = "affine"

Part = Literal["image", "label"]


def read(path: Path, dtype: Any, part: Part) -> Stored:
    """The dataset ``part``, (X, Y, Z) or (X, Y, Z, channel), and the affine (voxel -> RAS+ mm).

    Nothing else is opened.
    """
    with reading(path, KIND):
        size = file_size(path)
        with h5py.File(path, "r") as file:
            data = _dataset(file, part, path)
            _check_storage(data, size, path)
            affine = np.eye(4)
            if AFFINE in file.attrs:
                stored = file.attrs.get_id(AFFINE)
                if stored.shape != (4, 4) or stored.dtype.kind != "f":
                    raise ValueError(AFFINE)
                affine = np.asarray(file.attrs[AFFINE], dtype=np.float64)
            check_axes(path, affine)
            channel = _channel_axis(data.shape, part, path)
            array = np.asarray(data[()])
        if array.dtype.kind == "b":
            array = array.astype(np.uint8)
        values = array.astype(array.dtype.newbyteorder("=") if dtype is None else dtype)
        if channel is None:
            return Stored(values, affine)
        values = np.moveaxis(values, channel, -1)
        if values.shape[-1] == 1:  # which axis that is, nobody can doubt
            return Stored(values, affine)
        which = "first" if channel == 0 else "last"
        remark = f"of the four axes of '{part}' the {which} is taken for the channels"
        return Stored(values, affine, remarks=(remark,))


def write(path: Path, array: Array, affine: Array) -> None:
    """Write (X, Y, Z): whole numbers as `label`, others as `image`."""
    # In memory first: on a full disk the library itself fails in ways that cannot be caught.
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        name = "label" if array.dtype.kind in "iu" else "image"
        file.create_dataset(name, data=array, compression="gzip", shuffle=True)
        file.attrs[AFFINE] = affine
    path.write_bytes(content.getvalue())


def has_label(path: Path) -> bool:
    """Whether the file has a label; its values are not looked at."""
    with reading(path, KIND):
        file_size(path)
        with h5py.File(path, "r") as file:
            return file.get("label", getlink=True) is not None


def _dataset(file: h5py.File, part: Part, path: Path) -> h5py.Dataset:
    """The dataset, which must be in this very file."""
    link = file.get(part, getlink=True)
    if link is None:
        raise InputError(
            f"{path}: has no dataset '{part}'; the literature's files hold 'image' and, unless the "
            "case is unlabelled, 'label'"
        )
    data = file[part] if isinstance(link, h5py.HardLink) else None
    if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
        raise InputError(
            f"{path}: '{part}' is a link or lies in another file; store the voxels in this file"
        )
    if data.shape is None or data.dtype.kind not in "iufb":
        raise InputError(f"{path}: '{part}' holds no plain numbers; store it as float32 or uint8")
    return data


def _channel_axis(shape: tuple[int, ...], part: Part, path: Path) -> int | None:
    """The first or last of four axes, as PyTorch and NIfTI have it, that is far the shortest."""
    if len(shape) == 3 and min(shape) > 0:
        return None
    if len(shape) == 4 and min(shape) > 0:
        for channel in (0, 3):
            others = shape[1:] if channel == 0 else shape[:3]
            if shape[channel] == 1 or 2 * shape[channel] <= min(others):
                return channel
    raise InputError(
        f"{path}: '{part}' has the shape {shape}, but a volume has three axes and perhaps one of "
        "channels, far shorter and first or last; store it as X, Y, Z or C, X, Y, Z"
    )


def _check_storage(data: h5py.Dataset, size: int, path: Path) -> None:
    filters = data.id.get_create_plist()
    used = {filters.get_filter(i)[0] for i in range(filters.get_nfilters())}
    if not used <= FILTERS:
        raise InputError(f"{path}: is compressed by a plug-in; store it with gzip or uncompressed")
    stored = min(int(data.id.get_storage_size()), size)
    largest = max(math.prod(data.shape), math.prod(data.chunks or (0,)))
    check_claim(path, largest, data.dtype.itemsize, stored, DEFLATE_LIMIT if used else 1)
