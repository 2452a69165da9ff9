"""A folder with the slices of one DICOM series.

Only the elements listed here are ever read, so no name, date or free text of a patient can reach a
message, a cache or an output. Headers are parsed by pydicom, uncompressed pixels taken as they
are, and compressed ones decoded by SimpleITK in a process of its own.
"""

import logging
import math
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.filereader import _read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from dcamt.data.formats.guard import Array, Bounded, check_axes, check_claim, file_size, reading
from dcamt.data.formats.stored import Stored
from dcamt.errors import InputError
from dcamt.processes import child_environment

KIND = "DICOM"
ENDINGS = (".dcm", ".ima", ".dicom")
OTHER_ENDINGS = (".txt", ".json", ".xml", ".csv", ".pdf", ".html", ".md", ".jpg", ".png", ".zip")
"""Files that may lie beside the slices; every other file must be DICOM."""
UNEVEN = 0.1
"""Part of the slice distance by which a slice may lie off its place: headers are rounded."""
COMPRESSION_LIMIT = 1 << 14
"""Bytes that one byte of a file can expand to: a slice of nothing is a few hundred in JPEG 2000."""
ALIKE = 1e-3
"""Difference of two direction cosines that is rounding."""
MODALITIES = ("CT", "MR", "PT", "NM", "US", "XA", "RF", "CR", "DX", "MG", "OT")
"""Named in messages; anything else could be free text."""
REQUIRED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
ELEMENTS = (
    *REQUIRED, "SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "NumberOfFrames",
    "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "RescaleSlope", "RescaleIntercept",
)  # fmt: skip

# It quotes the values that it finds odd.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="pydicom")


@dataclass(frozen=True, eq=False)
class Slice:
    """One file: where it lies (mm, LPS) and how its pixels are stored."""

    path: Path
    series: tuple[int, str]  # number and UID
    modality: str
    rows: int
    columns: int
    position: Array  # (3,)
    directions: Array  # (2, 3): of growing column, of growing row
    spacing: tuple[float, float]  # along columns, along rows
    stored: np.dtype[Any]
    bits: tuple[int, int]  # stored, highest
    rescale: tuple[float, float]  # slope, intercept
    compressed: bool


def is_slice(path: Path) -> bool:
    """Whether a file is, or claims to be, DICOM."""
    if path.suffix.lower() in ENDINGS:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def is_series(folder: Path) -> bool:
    """Whether a folder itself (not what is below it) holds DICOM files."""
    return any(is_slice(path) for path in _files(folder))


def read(folder: Path, series: int | None = None) -> Stored:
    """Values (X, Y, Z) float32, rescaled (CT: Hounsfield units), and the affine (voxel -> RAS+ mm).

    X runs along the columns, Y along the rows, Z along their normal. ``series`` counts from 1 in
    the order of the series numbers; it is needed where the folder holds several.
    """
    with reading(folder, KIND):
        slices = sorted_slices(folder, series)
        shape = (slices[0].columns, slices[0].rows, len(slices))
        raw = not any(one.compressed for one in slices)
        stored = sum(file_size(one.path) for one in slices)
        ratio = 1 if raw else COMPRESSION_LIMIT
        check_claim(folder, math.prod(shape), slices[0].stored.itemsize, stored, ratio)
        array = np.empty(shape, np.float32)
        if raw:
            for index, one in enumerate(slices):
                with reading(one.path, KIND):
                    array[:, :, index] = _pixels(one).T
        else:
            array[:] = _decoded(folder, slices).T
        return Stored(array, _affine(folder, slices))


def sorted_slices(folder: Path, series: int | None = None) -> list[Slice]:
    """The slices of one series along their normal.

    Raises InputError if there are several series and none is named, and if the slices do not make
    up a volume: turned against each other, missing, doubled or unevenly spaced.
    """
    found: dict[tuple[int, str], list[Slice]] = {}
    frames = 0
    for path in _files(folder):
        one = _header(path)
        if one is None:
            frames += 1
        elif one is not NOT_AN_IMAGE:
            found.setdefault(one.series, []).append(one)
    if not found:
        reason = "holds multi-frame DICOM" if frames else "holds no DICOM images"
        raise InputError(
            f"{folder}: {reason}; export the series as one file per slice, or as NIfTI"
        )
    keys = sorted(found)
    if series is None and len(keys) > 1:
        listed = "; ".join(f"{i}) {_describe(found[key])}" for i, key in enumerate(keys, 1))
        raise InputError(
            f"{folder}: holds {len(keys)} series: {listed}; name one to predict with --series, or "
            "keep each in a folder of its own"
        )
    if series is not None and not 1 <= series <= len(keys):
        raise InputError(f"{folder}: has no series {series}; the series are 1 to {len(keys)}")
    return _in_order(folder, found[keys[(series or 1) - 1]])


NOT_AN_IMAGE: Any = object()


def _files(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".") and path.name.upper() != "DICOMDIR"
    ]


def _refuse_deflated(path: Path, file: Bounded) -> None:
    """InputError for a file that its parser would inflate as a whole, to whatever size.

    ``file`` stands after the preamble. pydicom's public function opens the file anew, unbounded.
    """
    syntax = _read_file_meta_info(file).get("TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        raise InputError(f"{path}: is deflated as a whole; export the series without compression")


def _header(path: Path) -> Slice | None:
    """What is known of a file; None for multi-frame, NOT_AN_IMAGE for reports and the like."""
    if path.suffix.lower() in OTHER_ENDINGS:
        return NOT_AN_IMAGE
    with reading(path, KIND):
        with Bounded(path) as file:
            if file.read(132)[128:] == b"DICM":  # else the parser tells what is wrong
                _refuse_deflated(path, file)
            file.seek(0)
            head = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(ELEMENTS))
        # By its class, for a header that is cut short lacks its rows as well.
        kind = head.file_meta.get("MediaStorageSOPClassUID") or head.SOPClassUID
        if not kind.name.endswith("Image Storage"):
            return NOT_AN_IMAGE
        if int(head.get("NumberOfFrames") or 1) > 1:
            return None
        syntax = head.file_meta.TransferSyntaxUID
        missing = [name for name in REQUIRED if not head.get(name)]
        if missing:
            raise InputError(
                f"{path}: the header lacks {', '.join(missing)}, so the slice has no place in "
                "space; leave out such images, or export the series again"
            )
        if int(head.get("SamplesPerPixel", 1)) != 1:
            raise InputError(f"{path}: holds colours; export the series as grey values")
        allocated, kept = int(head.BitsAllocated), int(head.BitsStored)
        highest = int(head.get("HighBit", kept - 1))
        if allocated not in (8, 16, 32) or not 0 < kept <= highest + 1 <= allocated:
            raise ValueError("bits")
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        sign = "i" if int(head.PixelRepresentation) else "u"
        modality = str(head.get("Modality", ""))
        along_rows, along_columns = (float(mm) for mm in head.PixelSpacing)
        one = Slice(
            path=path,
            series=(int(head.get("SeriesNumber") or 0), str(head.SeriesInstanceUID)),
            modality=modality if modality in MODALITIES else "other",
            rows=int(head.Rows),
            columns=int(head.Columns),
            position=np.array([float(mm) for mm in head.ImagePositionPatient]),
            directions=np.array([float(c) for c in head.ImageOrientationPatient]).reshape(2, 3),
            spacing=(along_columns, along_rows),
            stored=np.dtype(f"{order}{sign}{allocated // 8}"),
            bits=(kept, highest),
            rescale=(
                float(head.get("RescaleSlope") or 1),
                float(head.get("RescaleIntercept") or 0),
            ),
            compressed=bool(syntax.is_compressed),
        )
        if one.position.shape != (3,) or not np.isfinite([*one.position, *one.rescale]).all():
            raise ValueError("position")
        if min(one.rows, one.columns) < 1:
            raise ValueError("size")
        products = one.directions @ one.directions.T
        if not np.allclose(products, np.eye(2), atol=10 * ALIKE):
            raise ValueError("directions")
        return one


def _describe(slices: Sequence[Slice]) -> str:
    one = slices[0]
    return f"{one.modality}, {len(slices)} slices of {one.columns} x {one.rows}"


def _in_order(folder: Path, slices: list[Slice]) -> list[Slice]:
    if len(slices) < 2:
        raise InputError(
            f"{folder}: the series has a single slice; copy all of its slices into the folder"
        )
    first = slices[0]
    for one in slices:
        alike = (one.rows, one.columns) == (first.rows, first.columns)
        alike = alike and np.allclose(one.directions, first.directions, rtol=0, atol=ALIKE)
        if not alike or not np.allclose(one.spacing, first.spacing, rtol=ALIKE):
            raise InputError(
                f"{folder}: the slices differ in size, spacing or direction (see {one.path.name}); "
                "take out what belongs to another scan, such as a localizer"
            )
    normal = np.cross(*first.directions)
    slices = sorted(slices, key=lambda one: float(one.position @ normal))
    heights = np.array([one.position @ normal for one in slices])
    gaps = np.diff(heights)
    step = float(np.median(gaps))
    if step <= 0 or gaps.min() < UNEVEN * step:
        raise InputError(
            f"{folder}: several slices lie at one place, as with several time points or echoes; "
            "keep one of each in a folder of its own"
        )
    places = np.linspace(slices[0].position, slices[-1].position, len(slices))
    away = np.linalg.norm(places - np.array([one.position for one in slices]), axis=1).max()
    if gaps.max() > 1.5 * step:
        raise InputError(
            f"{folder}: slices are missing: most lie {step:.4g} mm apart, but two {gaps.max():.4g} "
            "mm; copy the whole series"
        )
    if away > UNEVEN * step:
        raise InputError(
            f"{folder}: the slices are unevenly spaced ({gaps.min():.4g} to {gaps.max():.4g} mm "
            "apart, or not in one line); resample the series to even spacing first"
        )
    return slices


def _affine(folder: Path, slices: Sequence[Slice]) -> Array:
    first, last = slices[0], slices[-1]
    lps = np.eye(4)
    lps[:3, :2] = first.directions.T * first.spacing
    # From slice to slice, which a tilted gantry does not make the normal.
    lps[:3, 2] = (last.position - first.position) / (len(slices) - 1)
    lps[:3, 3] = first.position
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    check_axes(folder, affine)
    return affine


def _pixels(one: Slice) -> Array:
    """Rescaled values (rows, columns) of a slice that is not compressed."""
    with Bounded(one.path) as file:
        data = pydicom.dcmread(file, specific_tags=["PixelData"]).PixelData
    count = one.rows * one.columns
    values: Array = np.frombuffer(data, one.stored, count).reshape(one.rows, one.columns)
    values = values.astype(one.stored.newbyteorder("="))
    kept, highest = one.bits
    width = one.stored.itemsize * 8
    if kept < width:  # unused bits may hold anything: push them out, and the sign back in
        values = (values << (width - 1 - highest)) >> (width - kept)
    slope, intercept = one.rescale
    return (values * slope + intercept).astype(np.float32)


def _decoded(folder: Path, slices: Sequence[Slice]) -> Array:
    """Rescaled values (slices, rows, columns) of a series of which some are compressed."""
    rows, columns = slices[0].rows, slices[0].columns
    program = Path(__file__).with_name("dicom_decode.py")
    done = subprocess.run(
        [sys.executable, program, str(rows), str(columns)],
        env=child_environment(),
        input=b"\0".join(str(one.path.resolve()).encode() for one in slices),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it may quote the header
        timeout=60 + len(slices),
        check=False,
    )
    if done.returncode or len(done.stdout) != 4 * len(slices) * rows * columns:
        raise InputError(
            f"{folder}: the compressed pixels cannot be decoded; export the series without "
            "compression, or as NIfTI"
        )
    return np.frombuffer(done.stdout, "<f4").reshape(len(slices), rows, columns)
