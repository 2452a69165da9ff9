"""MetaImage, with the data in the same file (.mha) or beside it (.mhd).

Read here rather than by a library, for the same reason as NRRD.
"""

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from dcamt.data.formats.guard import (
    DEFLATE_LIMIT,
    HEADER_LIMIT,
    beside,
    check_axes,
    check_claim,
    contents,
    file_size,
    inflate,
    reading,
)
from dcamt.data.formats.stored import Stored
from dcamt.data.grid import Array, millimetres
from dcamt.errors import InputError

KIND = "MetaImage"
TYPES = {
    "i1": "MET_CHAR",
    "u1": "MET_UCHAR",
    "i2": "MET_SHORT",
    "u2": "MET_USHORT",
    "i4": "MET_INT",
    "u4": "MET_UINT",
    "i8": "MET_LONG_LONG",
    "u8": "MET_ULONG_LONG",
    "f4": "MET_FLOAT",
    "f8": "MET_DOUBLE",
}
CODES = {name: code for code, name in TYPES.items()} | {"MET_LONG": "i4", "MET_ULONG": "u4"}


def read(path: Path, dtype: Any) -> Stored:
    """Values (X, Y, Z) or (X, Y, Z, channel) and the affine (voxel -> RAS+ mm)."""
    with reading(path, KIND):
        content = contents(path)
        fields, start = _header(content)
        sizes = tuple(int(n) for n in fields["DimSize"].split())
        channels = int(fields.get("ElementNumberOfChannels", "1"))
        if len(sizes) != int(fields["NDims"]) or min(*sizes, channels) < 1:
            raise ValueError("DimSize")
        if len(sizes) not in (3, 4) or (len(sizes) == 4 and channels > 1):
            raise InputError(
                f"{path}: has {len(sizes)} axes and {channels} values per voxel; a volume has "
                "three axes and perhaps channels, so export it as such"
            )
        affine, remarks = _affine(path, fields, len(sizes))
        stored = _type(path, fields)
        detached = _beside(path, fields)
        if detached is not None:
            content, start = contents(detached), 0
        values = _values(path, content[start:], stored, math.prod(sizes) * channels, fields)
        array = values.reshape((channels, *sizes), order="F")
        array = array[0] if channels == 1 else np.moveaxis(array, 0, -1)
        values = array.astype(stored.newbyteorder("=") if dtype is None else dtype)
        return Stored(values, affine, remarks=remarks)


def data_file(path: Path) -> Path | None:
    """The file beside a header that holds its data; None if they follow the header."""
    with reading(path, KIND):
        file_size(path)
        with path.open("rb") as file:
            fields, _ = _header(file.read(HEADER_LIMIT))
        return _beside(path, fields)


def _beside(path: Path, fields: dict[str, str]) -> Path | None:
    name = fields["ElementDataFile"]
    if name.split()[0] == "LIST" or "%" in name:
        raise InputError(f"{path}: its data are spread over several files; save it as one .mha")
    return None if name.upper() == "LOCAL" else beside(path, name)


def write(path: Path, array: Array, affine: Array) -> None:
    """Write (X, Y, Z), compressed."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    values = array.astype(array.dtype.newbyteorder("<")).tobytes(order="F")
    packed = zlib.compress(values, level=6)
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": str(len(packed)),
        "TransformMatrix": _numbers((lps[:3, :3] / spacing).T.ravel()),
        "Offset": _numbers(lps[:3, 3]),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": _numbers(spacing),
        "DistanceUnits": "mm",
        "DimSize": " ".join(map(str, array.shape)),
        "ElementType": TYPES[array.dtype.str[1:]],
        "ElementDataFile": "LOCAL",
    }
    with path.open("wb") as file:
        file.write("".join(f"{key} = {value}\n" for key, value in header.items()).encode())
        file.write(packed)


def _numbers(values: Array) -> str:
    return " ".join(repr(float(value)) for value in values)


def _header(content: bytes) -> tuple[dict[str, str], int]:
    """Fields by name, and where the data begin: after ElementDataFile, which comes last."""
    fields: dict[str, str] = {}
    start = 0
    while "ElementDataFile" not in fields:
        end = content.find(b"\n", start, HEADER_LIMIT)
        if end < 0:
            if len(content) >= HEADER_LIMIT or start >= len(content):
                raise ValueError("no end of header")
            end = len(content)
        key, found, value = content[start:end].decode("utf-8", "replace").partition("=")
        start = end + 1
        if found:
            if key.strip() in fields:
                raise ValueError("field given twice")
            fields[key.strip()] = value.strip()
    return fields, start


def _type(path: Path, fields: dict[str, str]) -> np.dtype[Any]:
    name = fields["ElementType"]
    if name not in CODES:
        raise InputError(
            f"{path}: holds {name[:20]!r} values; export it as numbers, e.g. MET_SHORT"
        )
    msb = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False"))
    return np.dtype((">" if _true(msb) else "<") + CODES[name])


def _affine(path: Path, fields: dict[str, str], axes: int) -> tuple[Array, tuple[str, ...]]:
    """The part in space of the transform, in mm, and what a user should know of it.

    The transform's rows in the file are the axes' directions.
    """

    def numbers(*names: str, default: Array) -> Array:
        text = next((fields[name] for name in names if name in fields), None)
        if text is None:
            return default
        return np.array([float(v) for v in text.split()]).reshape(default.shape)

    directions = numbers("TransformMatrix", "Rotation", "Orientation", default=np.eye(axes))
    spacing = numbers("ElementSpacing", "ElementSize", default=np.ones(axes))
    affine = np.eye(4)
    affine[:3, :3] = directions[:3, :3].T * spacing[:3]
    affine[:3, 3] = numbers("Offset", "Position", "Origin", default=np.zeros(axes))[:3]
    (factor,), remarks = millimetres([fields.get("DistanceUnits", "mm")])
    affine = np.diag([-factor, -factor, factor, 1.0]) @ affine
    check_axes(path, affine)
    return affine, remarks


def _values(
    path: Path, data: bytes, stored: np.dtype[Any], count: int, fields: dict[str, str]
) -> Array:
    wanted = count * stored.itemsize
    skip = int(fields.get("HeaderSize", "0"))
    if not _true(fields.get("BinaryData", "False")):
        check_claim(path, count, 2, len(data) + 1)  # a digit and a space each
        return np.array(data.decode("ascii").split(), dtype=stored).reshape(count)
    if _true(fields.get("CompressedData", "False")):
        check_claim(path, count, stored.itemsize, len(data), DEFLATE_LIMIT)
        size = int(fields.get("CompressedDataSize", len(data)))
        if not 0 < size <= len(data):
            raise ValueError("CompressedDataSize")
        return np.frombuffer(inflate(path, data[:size], wanted), stored, count)
    if skip < -1:
        raise ValueError("HeaderSize")
    check_claim(path, count, stored.itemsize, len(data) - max(skip, 0))
    data = data[-wanted:] if skip == -1 else data[skip : skip + wanted]
    return np.frombuffer(data, stored, count)


def _true(text: str) -> bool:
    return text.strip().lower() in ("true", "1")
