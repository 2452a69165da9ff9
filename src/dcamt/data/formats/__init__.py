"""Formats by file ending. One reader and one writer each; dcamt.data.volume is the door to them.

The ending says what to look for and what to write. What is read is told by its content.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcamt.data.formats import hdf5, metaimage, nifti, nrrd
from dcamt.data.formats.content import is_packed, kind_of, other_kind, start_of
from dcamt.data.formats.guard import file_size, reading
from dcamt.data.formats.hdf5 import Part
from dcamt.data.formats.stored import Forms, Stored
from dcamt.data.grid import Array
from dcamt.errors import InputError
from dcamt.files import check_fetched

Reader = Callable[[Path, Any, Part], Stored]
Writer = Callable[[Path, Array, Array, Forms | None], None]
Stamps = tuple[tuple[str, int, int, int], ...]
"""Of each file its place, size, date and date of change."""


@dataclass(frozen=True)
class Format:
    """read(path, dtype, part) gives what is stored, write(path, array, affine, forms) stores it.

    kind is what messages call it. data_file(path) tells which file beside a header holds its data,
    if one does.
    """

    kind: str
    read: Reader
    write: Writer | None = None
    data_file: Callable[[Path], Path | None] | None = None


def _one_volume(read: Callable[[Path, Any], Stored]) -> Reader:
    """A reader of files that hold one volume, which is image or label by where it lies."""
    return lambda path, dtype, part: read(path, dtype)


def _without_forms(write: Callable[[Path, Array, Array], None]) -> Writer:
    """A writer of files that hold one transform."""
    return lambda path, array, affine, forms: write(path, array, affine)


_NIFTI = Format(nifti.KIND, _one_volume(nifti.read), nifti.write)
_NRRD = Format(nrrd.KIND, _one_volume(nrrd.read), _without_forms(nrrd.write), nrrd.data_file)
_META = Format(
    metaimage.KIND, _one_volume(metaimage.read), _without_forms(metaimage.write),
    metaimage.data_file,
)  # fmt: skip
FORMATS = {
    ".nii.gz": _NIFTI,
    ".nii": _NIFTI,
    ".nrrd": _NRRD,
    ".nhdr": replace(_NRRD, write=None),
    ".mha": _META,
    ".mhd": replace(_META, write=None),
    ".h5": Format(hdf5.KIND, hdf5.read, _without_forms(hdf5.write)),
}
"""By ending. A folder of DICOM slices is the one format without an ending: see dicom.py."""
OUTPUT_FORMATS = ("nii.gz", "nrrd", "mha", "h5")
"""What segmentations and maps are written as; the first unless another is asked for."""


def ending_of(name: str) -> str | None:
    """The ending of a file name, in small letters, that FORMATS lists; None if it has none."""
    return next((ending for ending in FORMATS if name.lower().endswith(ending)), None)


def format_of(path: Path) -> Format:
    """The format to read a file by: the one its content shows, and by its ending if it shows none.

    Raises InputError for an ending that is not listed, a file that cannot be read, and content that
    is known to be something else.
    """
    ending = ending_of(path.name)
    if ending is None:
        raise InputError(f"{path}: unsupported file ending; use one of {', '.join(FORMATS)}")
    with reading(path, FORMATS[ending].kind):
        if not file_size(path):
            raise InputError(f"{path}: is empty; copy or export it again")
        start, packed = start_of(path), is_packed(path)
    kind = kind_of(start)
    if kind is None:
        other = other_kind(start)
        if other is not None:
            raise InputError(f"{path}: is no {FORMATS[ending].kind} file but {other}")
        return FORMATS[ending]
    if packed and kind != nifti.KIND:
        raise InputError(f"{path}: is a {kind} file packed with gzip; unpack it with gunzip")
    return next(known for known in FORMATS.values() if known.kind == kind)


def parts_of(path: Path) -> list[Path]:
    """The files a volume consists of, by which a change of it is told.

    Slices of a DICOM folder, and the data file that a detached header names. Raises InputError for
    a link whose target is not there.
    """
    check_fetched(path)
    if path.is_dir():
        return [path, *sorted(path.iterdir())]
    find = format_of(path).data_file if ending_of(path.name) else None
    detached = find(path) if find else None
    return [path] if detached is None else [path, detached]


def stamps_of(files: Iterable[Path]) -> Stamps:
    """What tells one state of these volumes from another, also where a date was put back (ctime).

    Raises InputError if a file is not there.
    """
    try:
        return tuple(_stamp(part) for file in files for part in parts_of(file))
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None


def _stamp(file: Path) -> tuple[str, int, int, int]:
    status = file.stat()
    return str(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns


def file_stem(name: str) -> str | None:
    """File name without the ending of its format; None where it has none."""
    ending = ending_of(name)
    return None if ending is None else name[: -len(ending)]
