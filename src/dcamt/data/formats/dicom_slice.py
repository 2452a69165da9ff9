"""One DICOM file: whether it is a slice of a volume, where it lies, and its pixels.

Only the elements listed here are ever read, so no name, date or free text of a patient can reach a
message, a cache or an output. What a file is is told by its content: exports lack endings, the
preamble, or the transfer syntax.
"""

import logging
import re
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.filereader import _read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from dcamt.data.formats.guard import Bounded
from dcamt.data.grid import Array

ENDINGS = (".dcm", ".ima", ".dicom")
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z")
ALIKE = 1e-3
"""Difference of two direction cosines that is rounding."""
MODALITIES = ("CT", "MR", "PT", "NM", "US", "XA", "RF", "CR", "DX", "MG", "OT")
"""Named in messages; anything else could be free text."""
REQUIRED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
ELEMENTS = (
    *REQUIRED, "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber",
    "InstanceNumber", "Modality", "ImageType", "NumberOfFrames", "Rows", "Columns",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "RescaleSlope", "RescaleIntercept",
)  # fmt: skip
COLOURED = ("RGB", "YBR", "PALETTE", "HSV", "ARGB", "CMYK")
"""Beginnings of what pixels may stand for, beside grey."""
AGAIN = "export the series again"
DAMAGED = f"is damaged or not DICOM; check it, or {AGAIN}"
NO_IMAGE = "holds no image"
PIXELS = 0x7FE00010
UNDEFINED_LENGTH = 0xFFFFFFFF
"""Of pixels in fragments, as every compression has them."""

# It quotes the values that it finds odd.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="pydicom")

SeriesKey = tuple[int, str]
"""Number and UID."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One file: where it lies (mm, LPS) and how its pixels are stored."""

    path: Path
    series: SeriesKey
    uid: str
    number: int  # within the series, by InstanceNumber; 0 if it has none
    capture: bool  # of a screen or a page, by its class
    modality: str
    rows: int
    columns: int
    position: Array  # (3,)
    directions: Array  # (2, 3): of growing column, of growing row
    spacing: tuple[float, float]  # along columns, along rows
    stored: np.dtype[Any]
    bits: tuple[int, int]  # stored, highest
    rescale: tuple[float, float]  # slope, intercept
    implicit: bool  # whether elements lack their type
    little: bool  # byte order
    pixels: int  # byte at which the element of the pixels begins
    compressed: bool


@dataclass(frozen=True)
class Unfit:
    """A DICOM object that cannot be a slice, and why.

    page: it never was one, as a report or a page in colours; else it is a slice that is spoiled.
    series: None where it could not be read, so that a spoiled slice may belong to any.
    """

    path: Path
    reason: str
    page: bool = False
    series: SeriesKey | None = None


def is_dicom(path: Path) -> bool:
    """Whether a file's first bytes are those of DICOM, with a preamble or without."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    return start[128:] == b"DICM" or _is_first_element(start[:8])


def _is_first_element(start: bytes) -> bool:
    """Whether 8 bytes are the first element of a header without preamble, in either byte order."""
    if len(start) < 8:
        return False
    for order in "<>":
        group, element, length = struct.unpack(f"{order}HHI", start)
        typed = start[4:6] in (b"UL", b"OB", b"CS", b"UI", b"SH", b"DA", b"TM", b"LO")
        if group in (2, 8) and element <= 0xFF and (typed or length <= 0xFF):
            return True
    return False


def claims_by_name(path: Path) -> bool:
    """Whether a file's ending is that of a slice, packed or not."""
    name = path.name.lower()
    packed = next((ending for ending in PACKED if name.endswith(ending)), "")
    return name.removesuffix(packed).endswith(ENDINGS)


def name_pattern(path: Path) -> str:
    """What the names of the slices of an export share: the name without its numbers and UIDs."""
    return re.sub(r"[0-9a-f]+(\.[0-9]+)*", "#", path.name.lower())


def look_at(path: Path) -> Slice | Unfit | None:
    """What a file is; None where it is no DICOM."""
    if not is_dicom(path):
        return None
    start = 0
    try:
        with Bounded(path) as file:
            start = 132 if file.read(132)[128:] == b"DICM" else 0
            file.seek(start)
            meta = _read_file_meta_info(file)
            # By the class in the outer header, which is never deflated.
            if _is_no_image(str(meta.get("MediaStorageSOPClassUID") or "")):
                return Unfit(path, NO_IMAGE, page=True)
            # Its parser would inflate it as a whole, to whatever size.
            if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                return Unfit(path, "is deflated as a whole; export the series without compression")
            file.seek(0)
            head = pydicom.dcmread(
                file, force=True, stop_before_pixels=True, specific_tags=list(ELEMENTS)
            )
            kind = str(head.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")
            if _is_no_image(kind):
                return Unfit(path, NO_IMAGE, page=True)
            if not kind and "Rows" not in head:
                raise ValueError("class")
            return _image(path, head, kind, file.tell())
    except Exception:  # pydicom raises nearly every exception there is
        # Without a preamble the first bytes may be DICOM's by chance.
        return Unfit(path, DAMAGED) if start else None


def _is_no_image(kind: str) -> bool:
    """Whether a class is one of the standard's without slices: a report, a segmentation, a plan.

    A maker's own class may have some.
    """
    name = UID(kind).name
    return name not in ("", kind) and not name.endswith("Image Storage")


def _image(path: Path, head: pydicom.Dataset, kind: str, pixels: int) -> Slice | Unfit:
    uid = str(head.get("SeriesInstanceUID") or "")
    series = (_number(head, "SeriesNumber"), uid)
    capture = "Secondary Capture" in UID(kind).name
    # A header that is cut short has lost its series as well.
    known = series if uid else None
    try:
        page = _why_a_page(head)
        if page:
            return Unfit(path, page, True, known)
        missing = [name for name in REQUIRED if not head.get(name)]
        if missing:
            reason = f"lacks {', '.join(missing)}, so that it has no place in space; {AGAIN}"
            return Unfit(path, reason, capture, known)
        one = _slice(path, head, series, capture, pixels)
        if one.compressed and head.get("PhotometricInterpretation") == "MONOCHROME1":
            # Decoders invert it, and uncompressed slices are taken as they are.
            reason = "is compressed and MONOCHROME1; export the series without compression"
            return Unfit(path, reason, False, known)
        return one
    except Exception:
        return Unfit(path, DAMAGED, False, known)


def _number(head: pydicom.Dataset, element: str) -> int:
    try:
        return int(head.get(element) or 0)
    except (TypeError, ValueError):
        return 0


def _why_a_page(head: pydicom.Dataset) -> str:
    """Why an image is no slice of a volume; empty if it may be one."""
    if int(head.get("NumberOfFrames") or 1) > 1:
        return "is multi-frame; export the series as one file per slice, or as NIfTI"
    coloured = str(head.get("PhotometricInterpretation")).startswith(COLOURED)
    if int(head.get("SamplesPerPixel") or 1) != 1 or coloured:
        return "holds colours; export the series as grey values"
    if "LOCALIZER" in (head.get("ImageType") or ()):
        return "is a localizer; copy the slices of the scan into the folder"
    return ""


def _slice(
    path: Path, head: pydicom.Dataset, series: SeriesKey, capture: bool, pixels: int
) -> Slice:
    allocated, kept = int(head.BitsAllocated), int(head.BitsStored)
    highest = int(head.get("HighBit", kept - 1))
    if allocated not in (8, 16, 32) or not 0 < kept <= highest + 1 <= allocated:
        raise ValueError("bits")
    implicit, little = head.original_encoding
    sign = "i" if int(head.PixelRepresentation) else "u"
    modality = str(head.get("Modality", ""))
    along_rows, along_columns = (float(mm) for mm in head.PixelSpacing)
    syntax = head.file_meta.get("TransferSyntaxUID")
    one = Slice(
        path=path,
        series=series,
        uid=str(head.get("SOPInstanceUID") or ""),
        number=_number(head, "InstanceNumber"),
        capture=capture,
        modality=modality if modality in MODALITIES else "other",
        rows=int(head.Rows),
        columns=int(head.Columns),
        position=np.array([float(mm) for mm in head.ImagePositionPatient]),
        directions=np.array([float(c) for c in head.ImageOrientationPatient]).reshape(2, 3),
        spacing=(along_columns, along_rows),
        stored=np.dtype(f"{'<' if little else '>'}{sign}{allocated // 8}"),
        bits=(kept, highest),
        rescale=(float(head.get("RescaleSlope") or 1), float(head.get("RescaleIntercept") or 0)),
        implicit=bool(implicit),
        little=bool(little),
        pixels=pixels,
        compressed=bool(syntax and syntax.is_compressed),
    )
    if one.position.shape != (3,) or not np.isfinite([*one.position, *one.rescale]).all():
        raise ValueError("position")
    if min(one.rows, one.columns) < 1:
        raise ValueError("size")
    products = one.directions @ one.directions.T
    if not np.allclose(products, np.eye(2), atol=10 * ALIKE):
        raise ValueError("directions")
    return one


def pixels_of(one: Slice) -> Array:
    """Rescaled values (rows, columns) float32 of a slice that is not compressed.

    Raises ValueError where the file holds fewer. What follows the pixels is not looked at: discs
    and tapes pad.
    """
    with Bounded(one.path) as file:
        length = _to_pixels(one, file)
        count = one.rows * one.columns
        if length == UNDEFINED_LENGTH or length < count * one.stored.itemsize:
            raise ValueError("pixels")
        data = file.read(count * one.stored.itemsize)
    values: Array = np.frombuffer(data, one.stored, count).reshape(one.rows, one.columns)
    values = values.astype(one.stored.newbyteorder("="))
    kept, highest = one.bits
    width = one.stored.itemsize * 8
    if kept < width:  # unused bits may hold anything: push them out, and the sign back in
        values = (values << (width - 1 - highest)) >> (width - kept)
    slope, intercept = one.rescale
    return (values * slope + intercept).astype(np.float32)


def same_image(one: Slice, other: Slice) -> bool:
    """Whether two slices are copies of one image: the place and every pixel are equal."""
    same = np.array_equal(one.position, other.position) and one.rescale == other.rescale
    if not same or (one.rows, one.columns) != (other.rows, other.columns):
        return False
    if one.compressed or other.compressed:
        return _fragments(one) == _fragments(other)
    return np.array_equal(pixels_of(one), pixels_of(other))


def _fragments(one: Slice) -> bytes:
    """Compressed pixels as they are stored."""
    with Bounded(one.path) as file:
        _to_pixels(one, file)
        return file.read()


def _to_pixels(one: Slice, file: Bounded) -> int:
    """Set the file to the first pixel; returns the bytes that the header says they take."""
    order = "<" if one.little else ">"
    file.seek(one.pixels)
    group, element = struct.unpack(f"{order}HH", file.read(4))
    if group << 16 | element != PIXELS or not (one.implicit or file.read(4)[:1] in b"OU"):
        raise ValueError("pixels")
    length: int = struct.unpack(f"{order}I", file.read(4))[0]
    return length
