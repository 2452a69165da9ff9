"""What a file is, told by its first bytes: names are wrong now and then."""

import re
import zlib
from pathlib import Path

START_BYTES = 1024
"""Bytes of a file's beginning by which it is told: every signature lies within."""
GZIP = b"\x1f\x8b"
_METAIMAGE = re.compile(rb"\s*(ObjectType|NDims|Comment|ObjectSubType|DimSize)\s*=")
OTHERS = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"PK\3\4", "a ZIP archive; unpack it"),
    (b"7z\xbc\xaf", "a 7-Zip archive; unpack it"),
    (b"BZh", "packed with bzip2; unpack it"),
    (b"\xfd7zXZ", "packed with xz; unpack it"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd; unpack it"),
    (b"\x93NUMPY", "a NumPy array, which has no place in space"),
    (b"%PDF", "a PDF document"),
    (b"<!DOCTYPE", "a web page, as a failed download leaves one"),
    (b"<html", "a web page, as a failed download leaves one"),
    (b"\0\0\0\1\0\0", "a FreeSurfer volume; convert it with mri_convert"),
)
"""First bytes of what is no volume to us, and what to say of it."""


def is_packed(path: Path) -> bool:
    """Whether the file is gzipped."""
    with path.open("rb") as file:
        return file.read(2) == GZIP


def start_of(path: Path) -> bytes:
    """The first START_BYTES of a file, unpacked if it is gzipped; fewer where it is damaged."""
    with path.open("rb") as file:
        start = file.read(START_BYTES)
        if not start.startswith(GZIP):
            return start
        stream = zlib.decompressobj(wbits=31)
        try:
            # A gzip header may hold a long name before the data.
            return stream.decompress(start + file.read(64 * START_BYTES), START_BYTES)
        except zlib.error:
            return b""


def kind_of(start: bytes) -> str | None:
    """The format that the first bytes show; None if it is none of ours."""
    if start.startswith(b"NRRD000"):
        return "NRRD"
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "HDF5"
    if start[344:347] in (b"n+1", b"ni1") or start[4:7] in (b"n+2", b"ni2"):
        return "NIfTI"
    return "MetaImage" if _METAIMAGE.match(start) else None


def other_kind(start: bytes) -> str | None:
    """What a file is that holds no volume; None if that cannot be told."""
    if start[128:132] == b"DICM":
        return "a single DICOM file; give the folder that holds its series"
    lengths = (start[:4], start[:4][::-1])
    if (348).to_bytes(4, "little") in lengths and len(start) >= 348:
        return "in the Analyze format; convert it to NIfTI"
    return next((what for first, what in OTHERS if start.startswith(first)), None)
