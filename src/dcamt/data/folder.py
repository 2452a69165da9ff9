"""What of a folder is a volume, and which case it belongs to."""

import re
import unicodedata
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

from dcamt.data.formats import FORMATS, dicom, file_stem
from dcamt.data.formats.dicom_slice import PACKED
from dcamt.files import check_fetched, leads_nowhere

OTHER_FORMATS = (
    *(".hdr", ".img", ".mgz", ".mgh", ".mnc", ".gipl", ".vtk", ".npy", ".npz", ".hdf5"),
    *(".png", ".tif", ".tiff"),
    *dicom.ENDINGS,
)
CHANNEL_NUMBER = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
UNFETCHED = (".dvc", ".part", ".crdownload")
"""What DVC and downloads call a file whose content is not there yet."""
LITERATURE = "mri_norm2.h5"
SYSTEM = {
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "lost+found"),
    *("__macosx", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"),
}
"""What file servers, archives and desktops put into folders, in small letters."""
SAYS_LABEL = re.compile(
    r"(?P<case>.+)[._-](seg|segmentation|label|labels|labelmap|mask)", re.IGNORECASE
)
"""File names of labels that say so: 3D Slicer's CASE.seg.nrrd, CASE-label.nrrd and their like."""


def is_of_the_system(path: Path) -> bool:
    """Whether an entry of a folder is hidden or no user's, such as Synology's @eaDir."""
    return path.name.startswith(".") or path.name.lower() in SYSTEM


def volume_file(path: Path) -> tuple[str, Path] | None:
    """The case and the file of one entry of a folder: a volume, or CASE/mri_norm2.h5.

    None for everything else, DICOM folders included, as a label is never kept in one.
    """
    if path.is_dir():
        file = path / LITERATURE
        return (case_name(path.name), file) if file.is_file() or file.is_symlink() else None
    if path.name == LITERATURE:
        return case_name(path.absolute().parent.name), path
    stem = file_stem(path.name)
    return None if stem is None else (case_name(stem), path)


def scan_file(path: Path) -> tuple[str, Path] | None:
    """Like volume_file, with DICOM folders, which bear the name of their case.

    So may a link whose target is not there: reading it tells.
    """
    lost_folder = leads_nowhere(path) and not path.suffix[1:].isalpha()
    if (path.is_dir() and dicom.is_series(path)) or (lost_folder and file_stem(path.name) is None):
        return case_name((path.resolve() if path.name in ("", "..") else path).name), path
    return volume_file(path)


def volumes_in(folder: Path, problems: list[str], unread: list[Path]) -> dict[str, Path]:
    """Volumes by name, sorted; hidden files, sidecars and what systems leave are passed over.

    Folders that are neither are added to ``unread``. Raises InputError for a folder that is a link
    to what is not there; one that does not exist is empty.
    """
    check_fetched(folder)
    files: dict[str, Path] = {}
    loose = (
        f"{folder}: holds DICOM slices among the scans; put each series into a folder of its own "
        "that bears the name of its case, and convert labels to .nii.gz or .nrrd"
    )
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if is_of_the_system(path):
            continue
        entry = scan_file(path)
        if entry is None:
            if path.is_dir() and any(map(leads_nowhere, path.iterdir())):
                problems.append(
                    f"{path}: holds links whose targets are not there; fetch their content (such "
                    "as by 'datalad get') or take the folder out"
                )
            elif path.is_dir():
                unread.append(path)
            elif path.suffix.lower() in dicom.ENDINGS:
                problems += [] if loose in problems else [loose]
            elif _is_meant_as_volume(path):
                problems.append(f"{path}: {why_not(path)}")
            continue
        name, file = entry
        if not is_plain_name(name):
            problems.append(f"{path}: the name has characters no case may have; rename the file")
        elif name in files:
            problems.append(f"{path}: {files[name].name} has the same case name; remove one")
        else:
            files[name] = file
    return files


def _is_meant_as_volume(path: Path) -> bool:
    """Whether a file that is no volume to us is one of another format, packed or not yet there."""
    ending = path.suffix.lower()
    if file_stem(path.stem) is not None:
        waits = ending in UNFETCHED and not path.with_suffix("").exists()
        return waits or ending in PACKED
    return ending in OTHER_FORMATS


def remarks_on(unread: Iterable[Path], skip: Path | None = None) -> list[str]:
    """What to tell of what was passed over: folders with volumes further down, labels among scans.

    Looks four folders deep, and not into hidden ones nor into one that leads to ``skip``.
    """
    remarks = []
    for path in unread:
        if not path.is_dir():
            remarks.append(
                f"{path}: is by its name the label of a scan beside it; it is passed over"
            )
        elif not (skip and skip.is_relative_to(path.resolve())) and _holds_volumes(path, 4):
            remarks.append(
                f"{path}: holds scans further down, where none is looked for; move them up, each "
                "under the name of its case, or take them out"
            )
    return remarks


def _holds_volumes(folder: Path, depth: int) -> bool:
    try:
        entries = [path for path in folder.iterdir() if not is_of_the_system(path)]
        if any(_claims(path) for path in entries) or dicom.is_series(folder):
            return True
    except OSError:  # moved away meanwhile, or closed to this account
        return False
    return any(_holds_volumes(path, depth - 1) for path in entries if depth > 1 and path.is_dir())


def _claims(path: Path) -> bool:
    """Whether a file says by its name that it is a volume or a slice."""
    return file_stem(path.name) is not None or path.suffix.lower() in dicom.ENDINGS


def why_not(path: Path) -> str:
    """Why a file is no scan, and what to do."""
    if path.suffix.lower() in dicom.ENDINGS:
        return "a single slice is no scan; give the folder that holds the DICOM series"
    if file_stem(path.stem) is not None and path.suffix.lower() in UNFETCHED:
        return f"stands for {path.stem}, which is not there; fetch that first"
    if file_stem(path.stem) is not None and path.suffix.lower() in PACKED:
        return "is packed; unpack it"
    return f"unsupported file ending; use one of {', '.join(FORMATS)}, or a folder of DICOM slices"


def case_name(name: str) -> str:
    """One spelling of letters with accents, which systems write in one or in two characters."""
    return unicodedata.normalize("NFC", name)


def is_plain_name(name: str) -> bool:
    """Whether a name can become part of an output path."""
    return bool(name) and name.isprintable() and not (set(name) & set("/\\")) and name[0] != "."


def labelled_case(name: str) -> str | None:
    """CASE of a name that says it is a label, such as CASE.seg or CASE-label; None of others."""
    match = SAYS_LABEL.fullmatch(name)
    return match["case"] if match else None


def by_case(labels: Mapping[str, Path], cases: Container[str]) -> dict[str, Path]:
    """Label files under the names of their cases.

    A file of the case's very name comes first; else CASE.seg.nrrd, CASE-label.nrrd and so on belong
    to CASE, if there is but one of them. Labels of no case keep their names.
    """
    others: dict[str, list[str]] = {}
    for name in labels:
        case = labelled_case(name)
        if name not in cases and case is not None and case in cases and case not in labels:
            others.setdefault(case, []).append(name)
    renamed = {names[0]: case for case, names in others.items() if len(names) == 1}
    return {renamed.get(name, name): path for name, path in labels.items()}


def is_by_channel(images: Sequence[str], labels: Iterable[str], ruled: bool) -> bool:
    """Whether image names end in a channel number (CASE_0000) rather than in a case's own digits.

    The labels' names, which never carry a channel number, settle which it is. Without labels
    they do if ``ruled``: several channels are declared, or the folder is nnU-Net's. Else they do
    only if more than one case has a first channel, or there is no other.
    """
    numbered = {m[0]: m["case"] for m in map(CHANNEL_NUMBER.fullmatch, images) if m}
    labels = {*labels, *filter(None, map(labelled_case, labels))}
    if labels & numbered.keys():
        return False
    if labels & {*numbered.values()}:
        return True
    if not numbered or len(numbered) < len(images):
        return False
    if labels or ruled:
        return True
    firsts = [name for name in numbered if name.endswith("_0000")]
    return len(firsts) > 1 or len(firsts) == len(images)


def group_channels(
    files: dict[str, Path], by_channel: bool, problems: list[str]
) -> dict[str, dict[int, Path]]:
    """Image files by case and channel number."""
    cases: dict[str, dict[int, Path]] = {}
    for stem, path in files.items():
        match = CHANNEL_NUMBER.fullmatch(stem)
        if not by_channel:
            cases[stem] = {0: path}
        elif match:
            cases.setdefault(match["case"], {})[int(match["channel"])] = path
        else:
            problems.append(
                f"{path}: the name lacks a channel number that other images have; rename it to "
                f"{image_name(stem, by_channel)}"
            )
    return cases


def image_name(case: str, by_channel: bool) -> str:
    """File name of the (first) image of ``case``; nnU-Net's if there is a file for each channel."""
    return f"{case}_0000.nii.gz" if by_channel else f"{case}.nii.gz"
