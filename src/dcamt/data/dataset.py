"""Data sets as they lie on disk, and which of their cases are labelled.

Four layouts are read where they are, without conversion:

- Medical Segmentation Decathlon: imagesTr/, labelsTr/, dataset.json (`modality`, number -> name);
  the channels of a case share one 4D file.
- nnU-Net raw: imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz, dataset.json (`channel_names`,
  name -> number, and perhaps `ignore` as the highest number).
- plain: images/ and labels/ with equal case names; dataset.json may name channels and classes.
- the semi-supervised literature's: CASE/mri_norm2.h5 with the datasets `image` and `label`, or
  files CASE.h5 of that kind in one folder.

Files may have any ending of dcamt.data.formats, and an image may be a folder of DICOM slices that
bears the case's name. A case without a label is unlabelled. The first three layouts may hold more
unlabelled images in imagesUn/. Where dataset.json lists its cases (nnU-Net's `dataset`), these are
the data set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dcamt.config import ClassCodes
from dcamt.data.classes import check_count
from dcamt.data.description import FILE, Description, read_description
from dcamt.data.folder import (
    LITERATURE,
    by_case,
    group_channels,
    image_name,
    is_by_channel,
    is_of_the_system,
    labelled_case,
    remarks_on,
    volumes_in,
)
from dcamt.data.formats import ending_of, hdf5
from dcamt.data.listing import listed_files, notes_on_training
from dcamt.errors import InputError, first_of
from dcamt.files import check_fetched

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

    channels: names in order; () while unknown (see survey).
    classes: names by label value, the first is background; () while unknown (see survey).
    ignore: label value of voxels that nobody annotated.
    codes: what classes are, for DICOM. notes: what a user should know; sentences. licence: what
    dataset.json states, on one line; "" where it states none.
    """

    root: Path
    name: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    ignore: int | None
    cases: tuple[Case, ...]
    codes: Mapping[str, ClassCodes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
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
        raise first_of(problems)
    return dataset


def scan_dataset(root: Path) -> tuple[Dataset, list[str]]:
    """Like read_dataset, but returns the usable cases beside all problems with their files.

    Raises InputError only where no data set can be made out at all.
    """
    check_fetched(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder that holds the data set")
    problems: list[str] = []
    try:
        told = read_description(root)
        check_count(told.classes, root / FILE)
        find = _cases_in_folders if told.listed is None else _cases_listed
        channels, cases, notes = find(root, told, problems)
        notes = [f"{root}: {note}" for note in (*told.notes, *notes, *_notes_on_tests(root))]
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({error.strerror}); check the folder") from error
    name = told.name or root.resolve().name
    cases = sorted(cases, key=lambda case: case.name)
    declared = root, name, channels, told.classes, told.ignore
    return Dataset(*declared, tuple(cases), told.codes, tuple(notes), told.licence), problems


Found = tuple[tuple[str, ...], list[Case], list[str]]
"""Channel names, cases and notes."""


def _cases_in_folders(root: Path, told: Description, problems: list[str]) -> Found:
    """What a data set holds by the names of its files."""
    unread: list[Path] = []
    notes: list[str] = []
    images, labels = _layout(root)
    image_files = volumes_in(images, problems, unread)
    more_files = volumes_in(root / "imagesUn", problems, unread)
    if labels == images:
        image_files, label_files = _literature_files(image_files, problems, notes)
    else:
        label_files = volumes_in(labels, problems, unread)
        problems += remarks_on(unread)
    if not image_files and not more_files and not problems:
        raise InputError(
            f"{images}: the folder holds no images; put files such as CASE.nii.gz there"
        )
    # In nnU-Net's folders every name carries its channel.
    ruled = len(told.channels) > 1 or (not told.channels and images.name == "imagesTr")
    by_channel = is_by_channel([*image_files, *more_files], label_files, ruled)
    grouped = group_channels(image_files, by_channel, problems)
    more = group_channels(more_files, by_channel, problems)
    label_files = by_case(label_files, grouped)
    channels = told.channels
    if not channels:
        count = 1 + max((max(files) for files in (*grouped.values(), *more.values())), default=0)
        channels = tuple(f"channel_{i}" for i in range(count)) if by_channel else ()

    cases = []
    for case in sorted({*grouped, *more}):
        files = grouped.get(case) or more[case]
        if case in grouped and case in more:
            problems.append(
                f"{root}: case {case} is in both {images.name} and imagesUn; remove one"
            )
        label = label_files.get(case) if case in grouped else None
        of = labelled_case(case)
        if label is None and (of in grouped or of in more):
            problems.append(
                f"{files[min(files)]}: lies among the images, but is by its name the label of case "
                f"{of}; move it to {labels.name}, or rename it"
            )
        elif list(files) != list(range(len(channels)) if by_channel else range(1)):
            problems.append(_channel_problem(case, files, channels))
        else:
            cases.append(Case(case, tuple(files.values()), label))
    problems += _labels_alone(label_files, grouped, images.name, by_channel)
    return channels, cases, [*notes, *notes_on_training(told.training, grouped, label_files)]


def _labels_alone(
    labels: Mapping[str, Path], cases: Mapping[str, object], images: str, by_channel: bool
) -> list[str]:
    """Problems of labels that belong to no case."""
    problems = []
    for name, path in labels.items():
        if name in cases:
            continue
        case = labelled_case(name)
        if case is not None and case in cases:
            problems.append(f"{path}: case {case} has another label as well; remove one")
        else:
            problems.append(
                f"{path}: the label has no image in {images}; add {image_name(name, by_channel)} "
                "or remove the label"
            )
    return problems


def _notes_on_tests(root: Path) -> list[str]:
    """Scans that nnU-Net and the Decathlon keep for testing."""
    if not (root / "imagesTs").is_dir():
        return []
    files = volumes_in(root / "imagesTs", [], [])
    labels = volumes_in(root / "labelsTs", [], [])
    scans = group_channels(files, is_by_channel(list(files), labels, True), [])
    if not scans:
        return []
    return [
        f"imagesTs holds {len(scans)} scan(s), which are kept for testing: they take no part in "
        "training"
    ]


def _cases_listed(root: Path, told: Description, problems: list[str]) -> Found:
    """The cases that dataset.json lists by itself, wherever in the data set's folder they lie."""
    assert told.listed is not None
    channels, cases = told.channels, []
    if not channels:
        count = max(len(images) for images, _ in told.listed.values())
        channels = tuple(f"channel_{i}" for i in range(count)) if count > 1 else ()
    for name, (images, label) in listed_files(root, told.listed, channels, problems).items():
        cases.append(Case(name, images, label))
    used = {image for case in cases for image in case.images}
    notes = []
    for folder in ("imagesTr", "images"):
        unused = sum(path not in used for path in volumes_in(root / folder, [], []).values())
        if unused:
            notes.append(
                f"{folder} holds {unused} file(s) that {FILE} does not list under 'dataset': they "
                "take no part in training"
            )
    more = volumes_in(root / "imagesUn", problems, [])
    by_channel = is_by_channel(list(more), (), len(channels) > 1)
    for case, files in group_channels(more, by_channel, problems).items():
        if case in told.listed:
            problems.append(f"{root}: case {case} is listed in {FILE} and in imagesUn; remove one")
        elif list(files) not in ([0], list(range(len(channels)))):
            problems.append(_channel_problem(case, files, channels))
        else:
            cases.append(Case(case, tuple(files.values()), None))
    return channels, cases, notes


def _layout(root: Path) -> tuple[Path, Path]:
    """Folders of images and labels; one and the same where a file holds both."""
    for images, labels in (("imagesTr", "labelsTr"), ("images", "labels")):
        check_fetched(root / images)
        if not (root / images).is_dir():
            continue
        if images == "imagesTr" and not (root / FILE).exists():
            raise InputError(
                f"{root}: dataset.json is missing beside imagesTr; add one that names channels and "
                "classes, or rename the folders to images and labels"
            )
        return root / images, root / labels
    entries = [path for path in root.iterdir() if not is_of_the_system(path)]
    if any(_holds_both(path) for path in entries):
        return root, root
    raise InputError(
        f"{root}: not a data set of a known layout; expected imagesTr/ and labelsTr/ with a "
        "dataset.json of the Medical Segmentation Decathlon, the same of nnU-Net raw "
        f"(CASE_0000.nii.gz), or images/ and labels/, or folders CASE/{LITERATURE}, or files "
        "CASE.h5 with an image and a label each"
    )


def _holds_both(path: Path) -> bool:
    """Whether an entry of a data set is an HDF5 file of the literature's, or a folder of one."""
    file = path / LITERATURE if path.is_dir() else path
    return ending_of(file.name) == ".h5" and (file.is_file() or file.is_symlink())


def _literature_files(
    found: Mapping[str, Path], problems: list[str], notes: list[str]
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and labels of CASE/mri_norm2.h5 or else CASE.h5, which are the same files.

    A case without a label has but an image.
    """
    images = {case: path for case, path in found.items() if path.name == LITERATURE}
    images = images or {case: path for case, path in found.items() if ending_of(path.name) == ".h5"}
    if len(images) < len(found):
        notes.append(
            f"{len(found) - len(images)} other volume(s) lie beside the HDF5 files: they take no "
            "part in training"
        )
    usable, labels = {}, {}
    for case, path in images.items():
        try:
            check_fetched(path)
            if hdf5.has_label(path):
                labels[case] = path
            usable[case] = path
        except InputError as error:
            problems.append(str(error))
    return usable, labels


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
