"""The scans to segment, wherever they lie."""

from dataclasses import replace
from pathlib import Path

from dcamt.data.dataset import Case, read_dataset
from dcamt.data.description import read_description
from dcamt.data.folder import (
    CHANNEL_NUMBER,
    case_name,
    group_channels,
    is_plain_name,
    labelled_case,
    remarks_on,
    scan_file,
    volumes_in,
    why_not,
)
from dcamt.data.formats import dicom, file_stem
from dcamt.errors import InputError
from dcamt.files import check_fetched


def find_scans(path: Path, channels: int, unread: list[Path] | None = None) -> list[Case]:
    """The scans to segment at ``path``: a file, a DICOM folder, a folder of those, or a data set.

    With ``channels`` above 1 a scan is one file of all channels or CASE_0000.nii.gz,
    CASE_0001.nii.gz, ...; with 1 the ending _0000 is optional. Labels are left out. A DICOM scan is
    named by its folder. Folders that are no scan, and labels among the scans by their names, are
    added to ``unread``. Raises InputError if there are no scans.
    """
    check_fetched(path)
    if path.is_file() or (path.is_dir() and dicom.is_series(path)):
        entry = scan_file(path)
        if entry is None:
            raise InputError(f"{path}: {why_not(path)}")
        name, found = entry
        _check_name(name, path)
        if channels > 1 and name.endswith("_0000") and _has_sibling(path, f"{name[:-1]}1"):
            raise InputError(
                f"{path}: is one of the {channels} channels of a scan; give the folder that holds "
                "all of them"
            )
        return [Case(name.removesuffix("_0000") if channels == 1 else name, (found,), None)]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; give a scan or a folder of scans")
    if (path / "imagesTr").is_dir() or (path / "images").is_dir():
        return [replace(case, label=None) for case in read_dataset(path).cases]
    problems: list[str] = []
    unread = [] if unread is None else unread
    files = volumes_in(path, problems, unread)
    if not files and read_description(path).listed is not None:
        return [replace(case, label=None) for case in read_dataset(path).cases]
    cases = {*files, *(m["case"] for m in map(CHANNEL_NUMBER.fullmatch, files) if m)}
    unread += [files.pop(name) for name in list(files) if labelled_case(name) in cases]
    problems += [] if files else remarks_on(unread)
    if not files and not problems:
        raise InputError(
            f"{path}: the folder holds no scans, such as .nii.gz files; put them there"
        )
    # With one channel, CASE_0003 is a case of its own unless every name ends in _0000.
    endings = {stem[-5:] for stem in files}
    by_channel = endings == {"_0000"} if channels == 1 else "_0000" in endings
    grouped = group_channels(files, by_channel, problems)
    problems += [
        f"{path}: case {case} has {len(found)} channel file(s), but the run was trained on "
        f"{channels}; add {case}_0000.nii.gz and so on"
        for case, found in grouped.items()
        if by_channel and list(found) != list(range(channels))
    ]
    if problems:
        raise InputError(problems[0])
    return [Case(case, tuple(found.values()), None) for case, found in grouped.items()]


def _has_sibling(path: Path, stem: str) -> bool:
    return any(
        case_name(file_stem(other.name) or "") == stem for other in path.absolute().parent.iterdir()
    )


def _check_name(name: str, path: Path) -> None:
    if not is_plain_name(name):
        raise InputError(f"{path}: the name has characters no case may have; rename it")
