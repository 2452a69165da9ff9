"""NRRD, with the header attached (.nrrd) or detached (.nhdr).

Read here rather than by a library: header and data come from strangers, and every number in the
header must be doubted before it is used. http://teem.sourceforge.net/nrrd/format.html
"""

import gzip
import math
import re
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

KIND = "NRRD"
TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int",
           "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}  # fmt: skip
"""NumPy type -> its names in a header, the first of which is written."""
TO_RAS = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}
"""Signs of a space's axes; every other space is taken for left-posterior-superior, as by ITK."""
SPATIAL = ("domain", "space", "???", "none")


def read(path: Path, dtype: Any) -> Stored:
    """Values (X, Y, Z) or (X, Y, Z, channel) and the affine (voxel -> RAS+ mm)."""
    with reading(path, KIND):
        content = contents(path)
        fields, start = _header(path, content)
        sizes = tuple(int(n) for n in fields["sizes"].split())
        stored = _type(path, fields)
        if len(sizes) != int(fields["dimension"]) or min(sizes) < 1:
            raise ValueError("sizes")
        channel = _channel_axis(path, fields, sizes)
        affine, remarks = _affine(path, fields, channel)
        kinds = fields.get("kinds", "").lower().split()
        if channel is not None and kinds[channel : channel + 1] == ["time"]:
            remarks += ("the header calls an axis time; its volumes are taken for channels",)
        detached = _beside(path, fields)
        if detached is not None:
            content, start = contents(detached), 0
        array = _values(path, content[start:], stored, sizes, fields)
        if channel is not None:
            array = np.moveaxis(array, channel, -1)
        values = array.astype(stored.newbyteorder("=") if dtype is None else dtype)
        return Stored(values, affine, remarks=remarks)


def data_file(path: Path) -> Path | None:
    """The file beside a header that holds its data; None if they follow the header."""
    with reading(path, KIND):
        file_size(path)
        with path.open("rb") as file:
            fields, _ = _header(path, file.read(HEADER_LIMIT))
        return _beside(path, fields)


def _beside(path: Path, fields: dict[str, str]) -> Path | None:
    name = fields.get("data file", fields.get("datafile"))
    if name is not None and (name.split()[0] == "LIST" or "%" in name):
        raise InputError(f"{path}: its data are spread over several files; save it as one .nrrd")
    return None if name is None else beside(path, name)


def write(path: Path, array: Array, affine: Array) -> None:
    """Write (X, Y, Z), compressed, in the space left-posterior-superior that ITK uses."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    vectors = [f"({','.join(repr(float(v)) for v in lps[:3, i])})" for i in (0, 1, 2, 3)]
    header = (
        "NRRD0004",
        f"type: {TYPES[array.dtype.str[1:]][0]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, array.shape))}",
        f"space directions: {' '.join(vectors[:3])}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {vectors[3]}",
        'space units: "mm" "mm" "mm"',
    )
    values = array.astype(array.dtype.newbyteorder("<")).tobytes(order="F")
    with path.open("wb") as file:
        file.write("\n".join(header).encode() + b"\n\n")
        file.write(gzip.compress(values, compresslevel=6, mtime=0))


def _header(path: Path, content: bytes) -> tuple[dict[str, str], int]:
    """Fields by name in small letters, and where the data begin."""
    if not content.startswith(b"NRRD000"):
        raise ValueError("magic")
    fields: dict[str, str] = {}
    start = 0
    while start < len(content):
        end = content.find(b"\n", start, HEADER_LIMIT)
        if end < 0:
            if len(content) >= HEADER_LIMIT:
                raise ValueError("no end of header")
            end = len(content)
        line = content[start:end].decode("utf-8", "replace").rstrip("\r")
        start = end + 1
        if not line:
            break
        key, found, value = line.partition(":")  # "KEY:=VALUE" is another's own
        if found and not value.startswith("=") and not line.startswith("#"):
            key = key.strip().lower()
            if key in fields:
                raise ValueError("field given twice")
            fields[key] = value.strip()
    return fields, start


def _type(path: Path, fields: dict[str, str]) -> np.dtype[Any]:
    name = " ".join(fields["type"].lower().split())
    code = next((code for code, names in TYPES.items() if name in names), None)
    if code is None:
        raise InputError(f"{path}: holds {name[:20]!r} values; export it as numbers, e.g. short")
    return np.dtype((">" if fields.get("endian", "little").lower() == "big" else "<") + code)


def _channel_axis(path: Path, fields: dict[str, str], sizes: tuple[int, ...]) -> int | None:
    """The one axis that is not in space, if the array has four."""
    if "space directions" in fields:
        vectors = _vectors(fields["space directions"])
        aside = [i for i, vector in enumerate(vectors) if vector is None]
        count = len(vectors)
    else:
        kinds = fields.get("kinds", " ".join(["domain"] * len(sizes))).lower().split()
        aside = [i for i, kind in enumerate(kinds) if kind not in SPATIAL]
        count = len(kinds)
    if count != len(sizes) or len(sizes) - len(aside) != 3 or len(aside) > 1:
        raise InputError(
            f"{path}: has {len(sizes)} axes, {len(aside)} of them not in space; a volume has three "
            "in space and at most one of channels, so export it as such"
        )
    return aside[0] if aside else None


def _affine(
    path: Path, fields: dict[str, str], channel: int | None
) -> tuple[Array, tuple[str, ...]]:
    """The affine in mm, and what a user should know of it.

    The unit is that of the space where the axes have directions in it, and the axes' own otherwise.
    """
    affine = np.eye(4)
    unit = fields.get("space units", "")
    if "space directions" in fields:
        vectors = [v for v in _vectors(fields["space directions"]) if v is not None]
        affine[:3, :3] = np.array(vectors, dtype=np.float64).T
    elif "spacings" in fields:
        affine[:3, :3] = np.diag([float(v) for v in _in_space(fields["spacings"], channel)])
        unit = fields.get("units", unit)
    if "space origin" in fields:
        (origin,) = _vectors(fields["space origin"])
        affine[:3, 3] = origin
    units = _in_space(unit, channel) or ["mm"] * 3
    factors, remarks = millimetres(units)
    signs = TO_RAS.get(fields.get("space", "").lower(), (-1, -1, 1))
    affine = np.diag([*signs, 1.0]) @ np.diag([*factors, 1.0]) @ affine
    check_axes(path, affine)
    return affine, remarks


def _in_space(text: str, channel: int | None) -> list[str]:
    """Three values of a field, quoted or not, without the one of an axis that is not in space."""
    values = re.findall(r'"([^"]*)"', text) or text.split()
    if channel is not None and len(values) > 3:
        del values[channel]
    return values


def _vectors(text: str) -> list[tuple[float, ...] | None]:
    """A vector for each axis; None where the axis is not in space, which old files say by NaN."""
    found = re.findall(r"none|\([^()]*\)", text)
    vectors = [
        None if part == "none" else tuple(float(value) for value in part[1:-1].split(","))
        for part in found
    ]
    return [None if vector and np.isnan(vector).all() else vector for vector in vectors]


def _values(
    path: Path, data: bytes, stored: np.dtype[Any], sizes: tuple[int, ...], fields: dict[str, str]
) -> Array:
    """Values by axis in the order of the header, of which the first runs fastest."""
    encoding = fields["encoding"].lower()
    count = math.prod(sizes)
    wanted = count * stored.itemsize
    skip = int(fields.get("byte skip", fields.get("byteskip", "0")))
    if int(fields.get("line skip", fields.get("lineskip", "0"))) or skip < -1:
        raise InputError(f"{path}: skips lines before its data; save it as one .nrrd")
    if encoding == "raw":
        check_claim(path, count, stored.itemsize, len(data) - max(skip, 0))
        data = data[-wanted:] if skip == -1 else data[skip : skip + wanted]
    elif encoding in ("gzip", "gz"):
        skip = max(skip, 0)
        check_claim(path, count, stored.itemsize, len(data) - skip // DEFLATE_LIMIT, DEFLATE_LIMIT)
        data = inflate(path, data, wanted + skip)[skip:]
    elif encoding in ("ascii", "text", "txt"):
        check_claim(path, count, 2, len(data) + 1)  # a digit and a space each
        array = np.array(data.decode("ascii").split(), dtype=stored)
        return array.reshape(sizes, order="F")
    else:
        raise InputError(f"{path}: is encoded as {encoding[:20]!r}; save it with gzip or raw")
    return np.frombuffer(data, stored, count).reshape(sizes, order="F")
