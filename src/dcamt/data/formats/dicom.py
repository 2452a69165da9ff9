"""A folder with the slices of one DICOM series, and whatever lies beside them.

Headers are parsed by pydicom, uncompressed pixels taken as they are, and compressed ones decoded by
SimpleITK in a process of its own. Messages tell files by their place in the folder: their names may
be a patient's.
"""

import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dcamt.data.formats.dicom_slice import (
    AGAIN,
    ALIKE,
    DAMAGED,
    ENDINGS,
    PACKED,
    SeriesKey,
    Slice,
    Unfit,
    claims_by_name,
    is_dicom,
    look_at,
    name_pattern,
    pixels_of,
    same_image,
)
from dcamt.data.formats.guard import check_axes, check_claim, file_size, reading
from dcamt.data.formats.stored import Stored
from dcamt.data.grid import Array
from dcamt.errors import InputError
from dcamt.processes import child_environment

__all__ = ["ENDINGS", "is_series", "read", "sorted_slices"]

KIND = "DICOM"
UNEVEN = 0.1
"""Part of the slice distance by which a slice may lie off its place: headers are rounded."""
COMPRESSION_LIMIT = 1 << 14
"""Bytes that one byte of a file can expand to: a slice of nothing is a few hundred in JPEG 2000."""


def is_series(folder: Path) -> bool:
    """Whether a folder itself (not what is below it) holds DICOM files.

    Told by their content. Where all are damaged, several names that end as slices do are taken as
    one, so that the damage is told.
    """
    files = _files(folder)
    return any(is_dicom(path) for path in files) or sum(map(claims_by_name, files)) > 1


def read(folder: Path, series: int | None = None) -> Stored:
    """Values (X, Y, Z) float32, rescaled (CT: Hounsfield units), and the affine (voxel -> RAS+ mm).

    X runs along the columns, Y along the rows, Z from slice to slice, which a tilted gantry does
    not make their normal. ``series`` counts from 1 in the order of the series numbers; it is needed
    where the folder holds several. Remarks tell what was passed over. Raises InputError as
    sorted_slices does, and for pixels that cannot be read.
    """
    with reading(folder, KIND):
        slices, remarks = sorted_slices(folder, series)
        shape = (slices[0].columns, slices[0].rows, len(slices))
        raw = not any(one.compressed for one in slices)
        stored = sum(file_size(one.path) for one in slices)
        ratio = 1 if raw else COMPRESSION_LIMIT
        check_claim(folder, math.prod(shape), slices[0].stored.itemsize, stored, ratio)
        array = np.empty(shape, np.float32)
        if raw:
            for index, one in enumerate(slices):
                with _reading(folder, one):
                    array[:, :, index] = pixels_of(one).T
        else:
            array[:] = _decoded(folder, slices).T
        return Stored(array, _affine(folder, slices), remarks=remarks)


def sorted_slices(folder: Path, series: int | None = None) -> tuple[list[Slice], tuple[str, ...]]:
    """The slices of one series along their normal, and remarks on what lay beside them.

    What is no slice is passed over, and copies count once. Raises InputError if there are several
    series and none is named, if a slice is damaged, and if the slices do not make up a volume:
    turned against each other, missing, at one place or unevenly spaced.
    """
    files = _files(folder)
    looked = [look_at(path) for path in files]
    slices = [one for one in looked if isinstance(one, Slice)]
    unfit = [one for one in looked if isinstance(one, Unfit)]
    patterns = {name_pattern(one.path) for one in slices}
    for path, one in zip(files, looked, strict=True):
        if one is None and (claims_by_name(path) or name_pattern(path) in patterns):
            packed = path.name.lower().endswith(PACKED)
            reason = "is packed; unpack it" if packed else f"is named like a slice but {DAMAGED}"
            unfit.append(Unfit(path, reason))

    found: dict[SeriesKey, list[Slice]] = {}
    for one in slices:
        found.setdefault(one.series, []).append(one)
    found = {key: _without_captures(several) for key, several in found.items()}
    keys = sorted(key for key, several in found.items() if _places(several) > 1)
    if not keys:
        raise InputError(f"{folder}: {_why_none(folder, slices, unfit)}")
    if series is None and len(keys) > 1:
        listed = "; ".join(f"{i}) {_describe(found[key])}" for i, key in enumerate(keys, 1))
        raise InputError(
            f"{folder}: holds {len(keys)} series: {listed}; name one to predict with --series, or "
            "keep each in a folder of its own"
        )
    if series is not None and not 1 <= series <= len(keys):
        raise InputError(f"{folder}: has no series {series}; the series are 1 to {len(keys)}")
    chosen = keys[(series or 1) - 1]
    spoiled = [one for one in unfit if not one.page and one.series in (None, chosen)]
    if spoiled:
        raise InputError(f"{folder}: {_told(folder, spoiled)}, or take it out")
    once = _once(folder, found[chosen])
    beside = len(files) - sum(len(found[key]) for key in keys)
    remarks = _remarks(folder, beside, len(found[chosen]) - len(once))
    return _in_order(folder, once), remarks + _first_missing(once)


def _files(folder: Path) -> list[Path]:
    """Whatever may be a slice, in the order of the names; a link may lead nowhere."""
    return [
        path
        for path in sorted(folder.iterdir())
        if not path.is_dir()
        and not path.name.startswith(".")
        and not path.name.upper().startswith("DICOMDIR")
    ]


def _which(folder: Path, path: Path) -> str:
    """A file of the folder without its name."""
    files = _files(folder)
    return f"file {files.index(path) + 1} of {len(files)} (counted by name)"


@contextmanager
def _reading(folder: Path, one: Slice) -> Iterator[None]:
    """Turn whatever is raised while a slice's pixels are read into one InputError."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "damaged"
        raise InputError(
            f"{folder}: the pixels of {_which(folder, one.path)} cannot be read ({reason}); copy "
            "the series or export it again"
        ) from error


def _told(folder: Path, unfit: Sequence[Unfit]) -> str:
    """What is wrong with the first of several files."""
    more = f", as well as {len(unfit) - 1} of the others," if unfit[1:] else ""
    return f"{_which(folder, unfit[0].path)}{more} {unfit[0].reason}"


def _without_captures(slices: list[Slice]) -> list[Slice]:
    """Slices of one series; among other images a capture of a screen or a page is none."""
    return [one for one in slices if not one.capture] or slices


def _places(slices: Sequence[Slice]) -> int:
    return len({tuple(one.position.tolist()) for one in slices})


def _once(folder: Path, slices: Sequence[Slice]) -> list[Slice]:
    """The slices of a series without copies of one another, which bear one identity."""
    kept: dict[tuple[str, ...], list[Slice]] = {}
    for one in slices:
        alike = kept.setdefault((one.uid, str(one.position)), [])
        with _reading(folder, one):
            if not any(same_image(one, other) for other in alike):
                alike.append(one)
    return [one for alike in kept.values() for one in alike]


def _why_none(folder: Path, slices: Sequence[Slice], unfit: Sequence[Unfit]) -> str:
    """Why no series of the folder makes up a volume."""
    spoiled = [one for one in unfit if not one.page]
    pages = [one for one in unfit if one.page and one.series]
    if spoiled:
        return _told(folder, spoiled)
    if len({one.series for one in slices}) > 1:
        return f"holds {len(slices)} images, each a series of its own; export them as one series"
    if slices:
        return "the series has a single slice; copy all of its slices into the folder"
    if pages:
        return _told(folder, pages)
    return f"holds no DICOM images; {AGAIN}, as one file per slice"


def _remarks(folder: Path, beside: int, copies: int) -> tuple[str, ...]:
    """Sentences on what was left out; empty if nothing was."""
    folders = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    below = sum(os.access(path, os.R_OK) and is_series(path) for path in folders)
    told = (
        ("files beside the slices that are no part of a volume and were passed over", beside),
        ("copies of slices that were left out", copies),
        ("folders beside the slices that hold DICOM files too and were not read", below),
    )
    return tuple(f"{words}: {count}" for words, count in told if count)


def _first_missing(slices: Sequence[Slice]) -> tuple[str, ...]:
    """A sentence where slices are numbered without a break, but not from 1 on.

    Nothing in a series tells how many there should be, so that the last ones may be missing unseen.
    """
    numbers = sorted(one.number for one in slices)
    first = numbers[0]
    if first < 2 or numbers != [*range(first, first + len(numbers))]:
        return ()
    return (f"its slices are numbered from {first} on; check that no earlier one is missing",)


def _describe(slices: Sequence[Slice]) -> str:
    one = slices[0]
    count = len({other.uid or other.path for other in slices})
    return f"{one.modality}, {count} slices of {one.columns} x {one.rows}"


def _in_order(folder: Path, slices: list[Slice]) -> list[Slice]:
    first = slices[0]
    for one in slices:
        alike = (one.rows, one.columns) == (first.rows, first.columns)
        alike = alike and np.allclose(one.directions, first.directions, rtol=0, atol=ALIKE)
        if not alike or not np.allclose(one.spacing, first.spacing, rtol=ALIKE):
            raise InputError(
                f"{folder}: the slices differ in size, spacing or direction (see "
                f"{_which(folder, one.path)}); take out what belongs to another scan, such as a "
                "localizer"
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
