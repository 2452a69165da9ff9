"""Data sets as they lie on disk, and which of their cases are labelled.

Three layouts are read where they are, without conversion:

- Medical Segmentation Decathlon: imagesTr/, labelsTr/, dataset.json (`modality`, number -> name);
  the channels of a case share one 4D file.
- nnU-Net raw: imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz, dataset.json (`channel_names`,
  name -> number, and perhaps `ignore` as the highest number).
- plain: images/ and labels/ with equal file names; dataset.json may name channels and classes.

A case without a label file is unlabelled. Each layout may hold more unlabelled images in imagesUn/.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dcamt.data.volume import Volume, nifti_stem, read_label
from dcamt.errors import InputError
from dcamt.files import read_text

IGNORE = "ignore"
CHANNEL_NUMBER = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
OTHER_FORMATS = (
    *(".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".img", ".mgz", ".dcm", ".h5", ".npy", ".npz"),
    *(".png", ".tif", ".tiff"),
)


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
    """

    root: Path
    name: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    ignore: int | None
    cases: tuple[Case, ...]

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
    try:
        images, labels = _layout(root)
        image_files = _nifti_files(images, problems)
        more_files = _nifti_files(root / "imagesUn", problems)
        label_files = _nifti_files(labels, problems)
        described = (root / "dataset.json").exists()
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({error.strerror}); check the folder") from error
    if not image_files and not more_files and not problems:
        raise InputError(f"{images}: the folder holds no images; put NIfTI files there")

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


def find_scans(path: Path, channels: int) -> list[Case]:
    """The scans to segment at ``path``: one file, a folder of files, or a whole data set.

    With ``channels`` above 1 a scan is one 4D file or CASE_0000.nii.gz, CASE_0001.nii.gz, ...;
    with 1 the ending _0000 is optional. Labels are left out. Raises InputError if there are none.
    """
    if path.is_file():
        stem = nifti_stem(path.name)
        if stem is None:
            raise InputError(f"{path}: unsupported file ending; convert it to .nii.gz")
        return [Case(stem.removesuffix("_0000") if channels == 1 else stem, (path,), None)]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; give a scan or a folder of scans")
    if (path / "imagesTr").is_dir() or (path / "images").is_dir():
        return [replace(case, label=None) for case in read_dataset(path).cases]
    problems: list[str] = []
    files = _nifti_files(path, problems)
    if not files and not problems:
        raise InputError(f"{path}: the folder holds no .nii.gz files; put the scans there")
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
    return ("background", *(f"class_{value}" for value in found[1:]))


def _layout(root: Path) -> tuple[Path, Path]:
    """Folders of images and labels."""
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
    raise InputError(
        f"{root}: not a data set of a known layout; expected imagesTr/ and labelsTr/ with a "
        "dataset.json of the Medical Segmentation Decathlon, the same of nnU-Net raw "
        "(CASE_0000.nii.gz), or images/ and labels/"
    )


def _nifti_files(folder: Path, problems: list[str]) -> dict[str, Path]:
    """NIfTI files by stem, sorted; hidden files and sidecars are passed over."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith("."):
            continue
        stem = nifti_stem(path.name)
        if stem is None:
            if path.suffix.lower() in OTHER_FORMATS:
                problems.append(f"{path}: unsupported file ending; convert it to .nii.gz")
        elif not _is_plain_name(stem):
            problems.append(f"{path}: the name has characters no case may have; rename the file")
        elif stem in files:
            problems.append(f"{path}: {files[stem].name} has the same case name; remove one")
        else:
            files[stem] = path
    return files


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
    if not isinstance(ending, str) or nifti_stem(f"x{ending}") is None:
        raise InputError(f"{path}: 'file_ending' is {ending!r}; convert the images to .nii.gz")
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
    classes = ("background", *classes[1:])
    return replace(dataset, name=name, channels=channels, classes=classes, ignore=ignore)


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
