"""Formats by file ending. One reader and one writer each; dcamt.data.volume is the door to them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcamt.data.formats import hdf5, metaimage, nifti, nrrd
from dcamt.data.formats.guard import Array
from dcamt.data.formats.hdf5 import Part
from dcamt.data.formats.stored import Stored
from dcamt.files import check_fetched

Reader = Callable[[Path, Any, Part], Stored]
Writer = Callable[[Path, Array, Array], None]


@dataclass(frozen=True)
class Format:
    """read(path, dtype, part) gives what is stored, write(path, array, affine) stores it.

    data_file(path) tells which file beside a header holds its data, if one does.
    """

    read: Reader
    write: Writer | None = None
    data_file: Callable[[Path], Path | None] | None = None


def _one_volume(read: Callable[[Path, Any], Stored]) -> Reader:
    """A reader of files that hold one volume, which is image or label by where it lies."""
    return lambda path, dtype, part: read(path, dtype)


FORMATS = {
    ".nii.gz": Format(_one_volume(nifti.read), nifti.write),
    ".nii": Format(_one_volume(nifti.read), nifti.write),
    ".nrrd": Format(_one_volume(nrrd.read), nrrd.write),
    ".nhdr": Format(_one_volume(nrrd.read), data_file=nrrd.data_file),
    ".mha": Format(_one_volume(metaimage.read), metaimage.write),
    ".mhd": Format(_one_volume(metaimage.read), data_file=metaimage.data_file),
    ".h5": Format(hdf5.read, hdf5.write),
}
"""By ending. A folder of DICOM slices is the one format without an ending: see dicom.py."""


def ending_of(name: str) -> str | None:
    """The ending of a file name, in small letters, that FORMATS lists; None if it has none."""
    return next((ending for ending in FORMATS if name.lower().endswith(ending)), None)


def parts_of(path: Path) -> list[Path]:
    """The files a volume consists of, by which a change of it is told.

    Slices of a DICOM folder, and the data file that a detached header names. Raises InputError for
    a link whose target is not there.
    """
    check_fetched(path)
    if path.is_dir():
        return [path, *sorted(path.iterdir())]
    ending = ending_of(path.name)
    find = FORMATS[ending].data_file if ending else None
    detached = find(path) if find else None
    return [path] if detached is None else [path, detached]


def file_stem(name: str) -> str | None:
    """File name without the ending of its format; None where it has none."""
    ending = ending_of(name)
    return None if ending is None else name[: -len(ending)]
