"""The scans to segment, wherever they lie."""

from collections import Counter
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
from dcamt.errors import InputError, first_of
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
    grouped = _scans_in(path, channels, problems, unread)
    if not grouped and read_description(path).listed is not None:
        return [replace(case, label=None) for case in read_dataset(path).cases]
    problems += [] if grouped else remarks_on(unread)
    if not grouped and not problems:
        raise InputError(
            f"{path}: the folder holds no scans, such as .nii.gz files; put them there"
        )
    if problems:
        raise first_of(problems)
    return grouped


def scans_so_far(
    path: Path, channels: int, skip: Path | None = None
) -> tuple[list[Case], list[str]]:
    """What of the folder ``path`` is a scan now, and what is wrong with the rest but ``skip``.

    For a folder that is being filled: it may be empty, and a scan that lacks a channel is no scan
    yet. With 1 channel the ending _0000 is no part of a name, whatever else will arrive. Of two
    scans that get one name by that, neither is taken.
    """
    problems: list[str] = []
    unread: list[Path] = []
    found = _scans_in(path, channels, problems, unread)
    problems += remarks_on(unread, skip)
    if channels == 1:
        found = [replace(case, name=case.name.removesuffix("_0000")) for case in found]
    times = Counter(case.name for case in found)
    problems += [
        f"{path}: {name} and {name}_0000 are scans of one name; rename one of them"
        for name, count in times.items()
        if count > 1
    ]
    return [case for case in found if times[case.name] == 1], problems


def check_can_be_watched(path: Path) -> None:
    """InputError unless ``path`` is a folder in which scans may arrive."""
    if not path.is_dir() or dicom.is_series(path):
        raise InputError(f"{path}: is no folder of scans, so none can arrive there")
    if (path / "imagesTr").is_dir() or (path / "images").is_dir():
        raise InputError(f"{path}: is a data set; give the folder of its images")


def _scans_in(path: Path, channels: int, problems: list[str], unread: list[Path]) -> list[Case]:
    """Scans of a folder by their names, those without whom ``problems`` tells of."""
    files = volumes_in(path, problems, unread)
    cases = {*files, *(m["case"] for m in map(CHANNEL_NUMBER.fullmatch, files) if m)}
    unread += [files.pop(name) for name in list(files) if labelled_case(name) in cases]
    # With one channel, CASE_0003 is a case of its own unless every name ends in _0000.
    endings = {stem[-5:] for stem in files}
    by_channel = endings == {"_0000"} if channels == 1 else "_0000" in endings
    grouped = group_channels(files, by_channel, problems)
    complete = {
        case: found
        for case, found in grouped.items()
        if not by_channel or list(found) == list(range(channels))
    }
    problems += [
        f"{path}: case {case} has {len(found)} channel file(s), but the run was trained on "
        f"{channels}; add {case}_0000.nii.gz and so on"
        for case, found in grouped.items()
        if case not in complete
    ]
    return [Case(case, tuple(found.values()), None) for case, found in complete.items()]


def _has_sibling(path: Path, stem: str) -> bool:
    return any(
        case_name(file_stem(other.name) or "") == stem for other in path.absolute().parent.iterdir()
    )


def _check_name(name: str, path: Path) -> None:
    if not is_plain_name(name):
        raise InputError(f"{path}: the name has characters no case may have; rename it")
