"""Data sets as they lie on disk, and which of their cases are labelled.

Four layouts are read where they are, without conversion:

- Medical Segmentation Decathlon: imagesTr/, labelsTr/, dataset.json (`modality`, number -> name);
  the channels of a case share one 4D file.
- nnU-Net raw: imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz, dataset.json (`channel_names`,
  name -> number, and perhaps `ignore` as the highest number).
- plain: images/ and labels/ with equal case names; dataset.json may name channels and classes.
- the semi-supervised literature's: CASE/mri_norm2.h5 with the datasets `image` and `label`.

Files may have any ending of dcamt.data.formats, and an image may be a folder of DICOM slices that
bears the case's name. A case without a label is unlabelled. The first three layouts may hold more
unlabelled images in imagesUn/.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dcamt.config import MOST_CLASSES
from dcamt.data.formats import FORMATS, dicom, file_stem, hdf5
from dcamt.data.volume import Volume, read_label
from dcamt.errors import InputError
from dcamt.escape import printable
from dcamt.files import read_text

IGNORE = "ignore"
CHANNEL_NUMBER = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
OTHER_FORMATS = (
    *(".hdr", ".img", ".mgz", ".npy", ".npz", ".hdf5", ".png", ".tif", ".tiff"),
    *dicom.ENDINGS,
)
COMPRESSED = (".bz2", ".xz", ".zst")
LITERATURE = "mri_norm2.h5"
VOLUMES_AT_ONCE = 4
"""Whole scans that are in memory while a data set is read, however many cores there are."""


@dataclass(frozen=True)
class Case:
    """One patient's scan: one file per channel (or one 4D file) and, if it is known, the label."""

    name: str
    images: tuple[Path, ...]
    label: Path | None


@dataclass(frozen=True)
class Dataset:
    """What a data set declares, and its cases sorted by name.

    classes: names by label value, the first is background; () while unknown (see find_classes).
    ignore: label value of voxels that nobody annotated.
    licence: what dataset.json states, on one line; "" where it states none.
    """

    root: Path
    name: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    ignore: int | None
    cases: tuple[Case, ...]
    licence: str = ""

    def case(self, name: str) -> Case:
        """The case of that name; InputError if there is none."""
        for case in self.cases:
            if case.name == name:
                return case
        raise InputError(f"{self.root}: there is no case named {name!r}; check the name")


def read_dataset(root: Path) -> Dataset:
    """Read the data set in a folder; images and labels are not opened.

    Raises InputError for a folder of no known layout, a broken dataset.json, and files that do
    not fit together.
    """
    dataset, problems = scan_dataset(root)
    if problems:
        more = f" ({len(problems)} such problems in all)" if problems[1:] else ""
        raise InputError(problems[0] + more)
    return dataset


def scan_dataset(root: Path) -> tuple[Dataset, list[str]]:
    """Like read_dataset, but returns the usable cases beside all problems with their files.

    Raises InputError only where no data set can be made out at all.
    """
    problems: list[str] = []
    unread: list[Path] = []
    try:
        images, labels = _layout(root)
        image_files = _volumes(images, problems, unread)
        more_files = _volumes(root / "imagesUn", problems, unread)
        if labels == images:
            image_files, label_files = _literature_files(image_files, problems)
        else:
            label_files = _volumes(labels, problems, unread)
            problems += buried(unread)
        described = (root / "dataset.json").exists()
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({error.strerror}); check the folder") from error
    if not image_files and not more_files and not problems:
        raise InputError(
            f"{images}: the folder holds no images; put files such as CASE.nii.gz there"
        )

    empty = Dataset(root, root.resolve().name, (), (), None, ())
    dataset = _describe(empty, root / "dataset.json") if described else empty
    by_channel = _is_by_channel([*image_files, *more_files], label_files)
    grouped = _group(image_files, by_channel, problems)
    more = _group(more_files, by_channel, problems)
    channels = dataset.channels
    if not described:
        count = 1 + max((max(files) for files in (*grouped.values(), *more.values())), default=0)
        channels = tuple(f"channel_{i}" for i in range(count)) if by_channel else ("image",)

    cases = []
    for case in sorted({*grouped, *more}):
        files = grouped.get(case) or more[case]
        if case in grouped and case in more:
            problems.append(
                f"{root}: case {case} is in both {images.name} and imagesUn; remove one"
            )
        expected = range(len(channels)) if by_channel else range(1)
        if list(files) != list(expected):
            problems.append(_channel_problem(case, files, channels))
            continue
        label = label_files.get(case) if case in grouped else None
        cases.append(Case(case, tuple(files.values()), label))
    problems += [
        f"{path}: the label has no image in {images.name}; add {_image_name(case, by_channel)} or "
        "remove the label"
        for case, path in label_files.items()
        if case not in grouped
    ]
    return replace(dataset, channels=channels, cases=tuple(cases)), problems


def find_scans(path: Path, channels: int, unread: list[Path] | None = None) -> list[Case]:
    """The scans to segment at ``path``: a file, a DICOM folder, a folder of those, or a data set.

    With ``channels`` above 1 a scan is one file of all channels or CASE_0000.nii.gz,
    CASE_0001.nii.gz, ...; with 1 the ending _0000 is optional. Labels are left out. A DICOM scan is
    named by its folder. Folders that are no scan are added to ``unread``. Raises InputError if
    there are no scans.
    """
    if path.is_file() or (path.is_dir() and dicom.is_series(path)):
        entry = _entry(path)
        if entry is None:
            raise InputError(f"{path}: {_why_not(path)}")
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
    files = _volumes(path, problems, unread)
    problems += [] if files else buried(unread)
    if not files and not problems:
        raise InputError(
            f"{path}: the folder holds no scans, such as .nii.gz files; put them there"
        )
    # With one channel, CASE_0003 is a case of its own unless every name ends in _0000.
    endings = {stem[-5:] for stem in files}
    by_channel = endings == {"_0000"} if channels == 1 else "_0000" in endings
    grouped = _group(files, by_channel, problems)
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


def volume_file(path: Path) -> tuple[str, Path] | None:
    """The case and the file of one entry of a folder: a volume, or CASE/mri_norm2.h5.

    None for everything else, DICOM folders included, as a label is never kept in one.
    """
    if path.is_dir():
        file = path / LITERATURE
        return (case_name(path.name), file) if file.is_file() else None
    if path.name == LITERATURE:
        return case_name(path.absolute().parent.name), path
    stem = file_stem(path.name)
    return None if stem is None else (case_name(stem), path)


def case_name(name: str) -> str:
    """One spelling of letters with accents, which systems write in one or in two characters."""
    return unicodedata.normalize("NFC", name)


def check_label_values(label: Volume, classes: int, ignore: int | None, path: Path) -> None:
    """Raise InputError for label values outside 0 ... classes - 1 and the ignore value."""
    unknown = [v for v in np.unique(label.array).tolist() if v >= classes and v != ignore]
    if unknown:
        raise InputError(
            f"{path}: the label holds {', '.join(map(str, unknown[:10]))}, but the data set "
            f"declares 0 to {classes - 1}{'' if ignore is None else f' and {ignore} (ignore)'}; "
            "remap the label or declare the class in dataset.json"
        )


def find_classes(dataset: Dataset) -> Dataset:
    """Fill in classes that dataset.json does not declare, from the values of the labels.

    Opens only labels that the data set still has: call hide_labels first. Raises InputError if
    the values are not 0, 1, 2, ...
    """
    if dataset.classes:
        return dataset
    values: set[int] = set()
    for case in dataset.cases:
        if case.label is not None:
            values.update(np.unique(read_label(case.label).array).tolist())
    return replace(dataset, classes=classes_from_values(values, dataset.root))


def classes_from_values(values: Iterable[int], root: Path) -> tuple[str, ...]:
    """Class names for the label values found in a data set without dataset.json.

    Raises InputError if they are not 0, 1, 2, ... with at least one foreground class.
    """
    found = sorted(values)
    if len(found) < 2 or found != list(range(len(found))):
        raise InputError(
            f"{root}: the labels hold the values {found}, but must hold 0 (background), 1, 2, ... "
            "without gaps; remap them, or declare the classes in a dataset.json"
        )
    return _checked_classes(("background", *(f"class_{value}" for value in found[1:])), root)


def _checked_classes(classes: tuple[str, ...], path: Path) -> tuple[str, ...]:
    if len(classes) > MOST_CLASSES:
        raise InputError(
            f"{path}: has {len(classes)} classes, background included; at most {MOST_CLASSES} can "
            "be trained at once, so leave some out"
        )
    return classes


def _layout(root: Path) -> tuple[Path, Path]:
    """Folders of images and labels; one and the same where a file holds both."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder that holds the data set")
    if (root / "imagesTr").is_dir():
        if not (root / "dataset.json").exists():
            raise InputError(
                f"{root}: dataset.json is missing beside imagesTr; add one that names channels and "
                "classes, or rename the folders to images and labels"
            )
        return root / "imagesTr", root / "labelsTr"
    if (root / "images").is_dir():
        return root / "images", root / "labels"
    if any((folder / LITERATURE).is_file() for folder in root.iterdir() if folder.is_dir()):
        return root, root
    raise InputError(
        f"{root}: not a data set of a known layout; expected imagesTr/ and labelsTr/ with a "
        "dataset.json of the Medical Segmentation Decathlon, the same of nnU-Net raw "
        f"(CASE_0000.nii.gz), or images/ and labels/, or folders CASE/{LITERATURE}"
    )


def _volumes(folder: Path, problems: list[str], unread: list[Path]) -> dict[str, Path]:
    """Volumes by name, sorted; hidden files and sidecars are passed over.

    Folders that are neither are added to ``unread``.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith("."):
            continue
        entry = _entry(path)
        if entry is None:
            compressed = path.suffix.lower() in COMPRESSED and file_stem(path.stem) is not None
            if path.is_dir():
                unread.append(path)
            elif path.is_file() and (compressed or path.suffix.lower() in OTHER_FORMATS):
                problems.append(f"{path}: {_why_not(path)}")
            continue
        name, file = entry
        if not _is_plain_name(name):
            problems.append(f"{path}: the name has characters no case may have; rename the file")
        elif name in files:
            problems.append(f"{path}: {files[name].name} has the same case name; remove one")
        else:
            files[name] = file
    return files


def buried(unread: Iterable[Path], skip: Path | None = None) -> list[str]:
    """What to tell of each folder of ``unread`` below which volumes lie that nobody would read.

    Looks four folders deep, and not into hidden ones nor into one that leads to ``skip``.
    """
    return [
        f"{path}: holds scans further down, where none is looked for; move them up, each under the "
        "name of its case, or take them out"
        for path in unread
        if not (skip and skip.is_relative_to(path.resolve())) and _holds_volumes(path, 4)
    ]


def _holds_volumes(folder: Path, depth: int) -> bool:
    entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return any(
        file_stem(path.name) is not None or path.suffix.lower() in dicom.ENDINGS for path in entries
    ) or any(_holds_volumes(path, depth - 1) for path in entries if depth > 1 and path.is_dir())


def _entry(path: Path) -> tuple[str, Path] | None:
    """Like volume_file, with DICOM folders, which bear the name of their case."""
    if path.is_dir() and dicom.is_series(path):
        return case_name((path.resolve() if path.name in ("", "..") else path).name), path
    return volume_file(path)


def _why_not(path: Path) -> str:
    if path.suffix.lower() in dicom.ENDINGS:
        return "a single slice is no scan; give the folder that holds the DICOM series"
    return f"unsupported file ending; use one of {', '.join(FORMATS)}, or a folder of DICOM slices"


def _check_name(name: str, path: Path) -> None:
    if not _is_plain_name(name):
        raise InputError(f"{path}: the name has characters no case may have; rename it")


def _literature_files(
    images: dict[str, Path], problems: list[str]
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and labels of CASE/mri_norm2.h5: the same files, but for cases without a label."""
    usable, labels = {}, {}
    for case, path in images.items():
        if path.name != LITERATURE:
            continue
        try:
            if hdf5.has_label(path):
                labels[case] = path
            usable[case] = path
        except InputError as error:
            problems.append(str(error))
    return usable, labels


def _is_by_channel(images: Sequence[str], labels: Iterable[str]) -> bool:
    """Whether image names end in a channel number (CASE_0000) rather than in a case's own digits.

    The labels' names, which never carry a channel number, settle which it is.
    """
    numbered = {m[0]: m["case"] for m in map(CHANNEL_NUMBER.fullmatch, images) if m}
    labels = set(labels)
    if labels & numbered.keys():
        return False
    return bool(numbered) and (len(numbered) == len(images) or bool(labels & {*numbered.values()}))


def _group(
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
                f"{_image_name(stem, by_channel)}"
            )
    return cases


def _image_name(case: str, by_channel: bool) -> str:
    return f"{case}_0000.nii.gz" if by_channel else f"{case}.nii.gz"


def _channel_problem(case: str, files: dict[int, Path], channels: Sequence[str]) -> str:
    folder = next(iter(files.values())).parent
    missing = [f"{i:04d} ({name})" for i, name in enumerate(channels) if i not in files]
    if missing:
        return (
            f"{folder}: case {case} lacks the channels {', '.join(missing)}; add files such as "
            f"{case}_{missing[0][:4]}.nii.gz"
        )
    return (
        f"{folder}: case {case} has {len(files)} channels, but the data set has {len(channels)} "
        f"({', '.join(channels)}); correct channel_names in dataset.json or remove files"
    )


def _describe(dataset: Dataset, path: Path) -> Dataset:
    """The data set with what its dataset.json of either kind says."""
    content = read_json(path)
    name = content.get("name", dataset.name)
    if not isinstance(name, str) or not _is_plain_name(name):
        raise InputError(f"{path}: 'name' is {name!r}, but must be plain text without slashes")
    ending = content.get("file_ending", ".nii.gz")
    if not isinstance(ending, str) or ending not in FORMATS:
        raise InputError(
            f"{path}: 'file_ending' is {ending!r}; convert the images to one of "
            f"{', '.join(FORMATS)}"
        )
    key = "channel_names" if "channel_names" in content else "modality"
    channels = _by_number(path, key, content.get(key))
    classes = _by_number(path, "labels", content.get("labels"))
    ignore = classes.index(IGNORE) if IGNORE in classes else None
    if ignore is not None:
        if ignore != len(classes) - 1:
            raise InputError(
                f"{path}: 'ignore' has the value {ignore}, but must have the highest of all "
                "labels; renumber the labels"
            )
        classes = classes[:-1]
    if classes[0].lower() != "background" or len(classes) < 2:
        raise InputError(
            f"{path}: 'labels' must name 0 as background and at least one class; correct it"
        )
    classes = _checked_classes(("background", *classes[1:]), path)
    return replace(
        dataset,
        name=name,
        channels=channels,
        classes=classes,
        ignore=ignore,
        licence=_licence(content),
    )


def _licence(content: dict[str, Any]) -> str:
    stated = next((content[key] for key in ("licence", "license") if content.get(key)), "")
    text = stated if isinstance(stated, str) else json.dumps(stated, ensure_ascii=False)
    return printable(" ".join(text.split()))


def _by_number(path: Path, key: str, entries: Any) -> tuple[str, ...]:
    """Names in order of their numbers, from {"0": name} or {name: 0}."""
    wrong = InputError(
        f"{path}: {key!r} is missing or malformed; write it as "
        + ('{"background": 0, "NAME": 1, ...}' if key == "labels" else '{"0": "NAME", ...}')
        + ", one whole number per name, without gaps"
    )
    if not isinstance(entries, dict) or not entries:
        raise wrong
    if all(isinstance(value, str) for value in entries.values()):
        pairs = [(number, name) for number, name in entries.items()]
    else:
        pairs = [(str(number), name) for name, number in entries.items()]
    names = {int(number): name for number, name in pairs if number.isdecimal()}
    if sorted(names) != list(range(len(pairs))) or len({*names.values()}) != len(pairs):
        raise wrong
    for name in names.values():
        if not name.strip() or not name.isprintable():
            raise InputError(
                f"{path}: {key!r} has the name {name!r}, which is empty or has characters that "
                "cannot be printed; write it as plain text"
            )
    return tuple(names[i] for i in range(len(names)))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InputError if there is none."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "a value"
        raise InputError(
            f"{path}: cannot be read (not valid JSON: {where}); correct the file"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object {{...}}, not a list or a single value")
    return content


def _is_plain_name(name: str) -> bool:
    """Whether a name can become part of an output path."""
    return bool(name) and name.isprintable() and not (set(name) & set("/\\")) and name[0] != "."
