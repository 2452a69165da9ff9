"""Formats by file ending. One reader and one writer each; dcamt.data.volume is the door to them."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcamt.data.formats import hdf5, metaimage, nifti, nrrd
from dcamt.data.formats.guard import HEADER_LIMIT, Array, file_size
from dcamt.data.formats.hdf5 import Part

Reader = Callable[[Path, Any, Part], tuple[Array, Array]]
Writer = Callable[[Path, Array, Array], None]


@dataclass(frozen=True)
class Format:
    """read(path, dtype, part) gives values (X, Y, Z, ...) and affine, write takes them."""

    read: Reader
    write: Writer | None = None


def _one_volume(read: Callable[[Path, Any], tuple[Array, Array]]) -> Reader:
    """A reader of files that hold one volume, which is image or label by where it lies."""
    return lambda path, dtype, part: read(path, dtype)


FORMATS = {
    ".nii.gz": Format(_one_volume(nifti.read), nifti.write),
    ".nii": Format(_one_volume(nifti.read), nifti.write),
    ".nrrd": Format(_one_volume(nrrd.read), nrrd.write),
    ".nhdr": Format(_one_volume(nrrd.read)),
    ".mha": Format(_one_volume(metaimage.read), metaimage.write),
    ".mhd": Format(_one_volume(metaimage.read)),
    ".h5": Format(hdf5.read, hdf5.write),
}
"""By ending. A folder of DICOM slices is the one format without an ending: see dicom.py."""


DETACHED = (".nhdr", ".mhd")
"""Headers whose data are in a file beside them."""
_DATA_FILE = re.compile(rb"^[ \t]*(?:ElementDataFile[ \t]*=|data ?file[ \t]*:)(.*)$", re.I | re.M)


def ending_of(name: str) -> str | None:
    """The ending of a file name, in small letters, that FORMATS lists; None if it has none."""
    return next((ending for ending in FORMATS if name.lower().endswith(ending)), None)


def parts_of(path: Path) -> list[Path]:
    """The files a volume consists of, by which a change of it is told.

    Slices of a DICOM folder, and the data file that a detached header names.
    """
    if path.is_dir():
        return [path, *sorted(path.iterdir())]
    if ending_of(path.name) in DETACHED:
        file_size(path)  # refuses what is no file
        with path.open("rb") as file:
            named = _DATA_FILE.findall(file.read(HEADER_LIMIT))
        beside = (os.path.join(path.parent, os.fsdecode(name.strip())) for name in named)  # noqa: PTH118
        found = (Path(name).resolve() for name in beside if os.path.isfile(name))  # noqa: PTH113
        return [path, *(p for p in found if p.is_relative_to(path.resolve().parent))]
    return [path]


def file_stem(name: str) -> str | None:
    """File name without the ending of its format; None where it has none."""
    ending = ending_of(name)
    return None if ending is None else name[: -len(ending)]
