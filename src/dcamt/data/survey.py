"""Open every file of a data set once: what planning needs of it, and everything that is wrong.

What refuses a training and what `dcamt inspect` calls an error are the same list, made here.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from dcamt.config import DataConfig, Plan
from dcamt.data.dataset import (
    VOLUMES_AT_ONCE,
    Case,
    Dataset,
    channels_from_count,
    check_label_values,
    classes_from_values,
    no_label,
)
from dcamt.data.formats.stored import gist, numbers
from dcamt.data.grid import is_nowhere
from dcamt.data.plan import ANISOTROPIC, Fingerprint, StrideOf, check_plan, make_plan, sixteen
from dcamt.data.space import (
    Shape,
    lost_labels,
    place,
    reoriented_shape,
    resampled_shape,
    spacing_along,
)
from dcamt.data.volume import Volume, aligned, check_channels, read_image, read_label
from dcamt.errors import InputError
from dcamt.memory import free_memory

SPACING_LIMITS = (0.01, 50.0)  # mm
FOREGROUND_VOXELS = 10_000
"""Labelled voxels of a case whose intensities are noted, about."""
KEPT = 1 / 4
"""Share of the free memory in which volumes may wait to be prepared, so that they are read once."""
GEOMETRY_LOST = (
    "spacing 1 x 1 x 1 mm and origin 0, as in files whose geometry was lost; compare the spacing "
    "with the source's, or distances in mm will be wrong"
)

Volumes = tuple[Volume, Volume | None]
"""A case's image and label."""


@dataclass(frozen=True)
class Intensity:
    """Intensities of one channel of one case, in the file's own unit."""

    minimum: float
    percentile_1: float
    mean: float
    percentile_99: float
    maximum: float


@dataclass(frozen=True)
class Grid:
    """Sizes of a case's image.

    channels: how many. size: voxels along the file's own axes; spacing: mm along these. whole,
    cropped: voxels along the prepared axes, of the scan and of the box of what is not zero; along:
    mm along these. inside: share of the voxels that are not zero.
    """

    channels: int
    size: Shape
    spacing: tuple[float, float, float]
    whole: Shape
    cropped: Shape
    along: tuple[float, float, float]
    inside: float


@dataclass(frozen=True, eq=False)
class Look:
    """What the files of one case show; what they do not tell is None or empty.

    label_voxels: number of voxels by value. labelled: voxels of all classes. lost: those of them
    where the image is cropped away. foreground: (N, C) intensities of labelled voxels.
    """

    name: str
    grid: Grid | None
    label_voxels: dict[int, int] | None
    lost: int
    labelled: int
    foreground: NDArray[np.float32]
    intensities: tuple[Intensity, ...]
    remarks: tuple[str, ...]
    errors: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Survey:
    """A data set that has been looked at.

    dataset: with its classes, also where dataset.json does not name them. plan: None if there are
    errors. kept: volumes in memory, by case, as far as there was room.
    """

    dataset: Dataset
    looks: tuple[Look, ...]
    plan: Plan | None
    errors: list[str]
    warnings: list[str]
    kept: dict[str, Volumes]


def survey(
    dataset: Dataset,
    training: Sequence[str],
    data: DataConfig,
    *,
    plan: Plan | None = None,
    stride: StrideOf = sixteen,
    intensities: bool = False,
    keep: bool = False,
) -> Survey:
    """Look at every case of ``dataset``, whose hidden labels are left out already.

    ``training`` names the cases that are planned for and learnt from; the others validate.
    ``plan`` is taken in place of one of our own, for a network of that ``stride``. With
    ``intensities`` those are summed up, too; with ``keep`` volumes stay in memory, up to a share of
    it. Raises nothing for bad files: they are among the errors.
    """
    room = _Room(KEPT * free_memory() if keep else 0.0)

    def at(case: Case) -> Look:
        return _look(case, dataset, data, intensities, room)

    with ThreadPoolExecutor(VOLUMES_AT_ONCE) as pool:
        looks = tuple(pool.map(at, dataset.cases))
    errors: list[str] = []
    dataset, of_classes = _with_classes(dataset, looks)
    dataset, of_channels = _with_channels(dataset, looks)
    for case, look in zip(dataset.cases, looks, strict=True):
        errors += look.errors
        if case.label is not None and look.label_voxels is not None and dataset.classes:
            with _collecting(errors):
                count = len(dataset.classes)
                check_label_values(look.label_voxels, count, dataset.ignore, case.label)
    learnt = [look for look in looks if look.name in training]
    warnings = [*dataset.notes, *_remarks(looks), *_never_shown(dataset, learnt)]
    errors += of_channels + of_classes + _nothing_shown(dataset, learnt)
    chosen: Plan | None = None
    if not errors:
        with _collecting(errors):
            found = fingerprint(learnt)
            chosen = plan or make_plan(dataset, found, data, stride)
            check_plan(chosen, dataset)
            errors += _too_large(dataset, looks, chosen)
            warnings += _about_plan(looks, chosen, data)
    plan = None if errors else chosen
    return Survey(dataset, looks, plan, errors, warnings, room.kept)


def _too_large(dataset: Dataset, looks: Sequence[Look], plan: Plan) -> list[str]:
    """What to tell of each scan that fits no memory once it is resampled."""
    errors: list[str] = []
    for case, look in zip(dataset.cases, looks, strict=True):
        if look.grid is not None:
            try:
                shape = look.grid.cropped if plan.crop else look.grid.whole
                resampled_shape(shape, look.grid.along, plan)
            except InputError as error:
                errors.append(f"{case.images[0]}: {error}")
    return errors


def fingerprint(looks: Sequence[Look]) -> Fingerprint:
    """What planning needs of the training cases that can be read."""
    grids = [look.grid for look in looks if look.grid is not None]
    return Fingerprint(
        whole=np.array([grid.whole for grid in grids]).reshape(-1, 3),
        shapes=np.array([grid.cropped for grid in grids]).reshape(-1, 3),
        spacings=np.array([grid.along for grid in grids]).reshape(-1, 3),
        inside=np.array([grid.inside for grid in grids]),
        lost=sum(look.lost for look in looks),
        foreground=np.concatenate([look.foreground for look in looks]),
    )


class _Room:
    """Volumes that wait in memory, as long as there is room."""

    def __init__(self, size: float):
        self.left, self.lock = size, Lock()
        self.kept: dict[str, Volumes] = {}

    def offer(self, name: str, image: Volume, label: Volume | None) -> None:
        needed = image.array.nbytes + (0 if label is None else label.array.nbytes)
        with self.lock:
            if needed <= self.left:
                self.left -= needed
                self.kept[name] = image, label


def _look(case: Case, dataset: Dataset, data: DataConfig, intensities: bool, room: _Room) -> Look:
    errors: list[str] = []
    image: Volume | None = None
    label: Volume | None = None
    with _collecting(errors):
        image = read_image(case.images)
        if dataset.channels:
            check_channels(image, dataset.channels, case.images[0])
    if case.label is not None:
        with _collecting(errors):
            label = read_label(case.label)
        with _collecting(errors):
            if image is not None and label is not None:
                label = aligned(image, label, case.images[0], case.label)
    grid, lost, labelled = None, 0, 0
    foreground = np.empty((0, len(image.array) if image else 1), np.float32)
    if image is not None:
        _, placement = place(image, data.orientation, crop=True)
        share = float(np.count_nonzero((image.array != 0).any(0))) / image.array[0].size
        along = spacing_along(image, placement)
        sizes = image.shape, image.spacing, reoriented_shape(placement), placement.cropped
        grid = Grid(len(image.array), *sizes, along, share)
        if label is not None and not errors:
            lost, labelled = lost_labels(label, placement, dataset.ignore)
            foreground = _foreground(image, label, dataset)
        if not errors:
            room.offer(case.name, image, label)
    return Look(
        case.name,
        grid,
        _count_values(label),
        lost,
        labelled,
        foreground,
        tuple(map(_intensity, image.array)) if image is not None and intensities else (),
        tuple(_oddities(image, label)),
        tuple(errors),
    )


def _count_values(label: Volume | None) -> dict[int, int] | None:
    if label is None:
        return None
    values, voxels = np.unique(label.array, return_counts=True)
    return dict(zip(values.tolist(), voxels.tolist(), strict=True))


def _foreground(image: Volume, label: Volume, dataset: Dataset) -> NDArray[np.float32]:
    annotated = label.array > 0
    if dataset.classes:  # the ignored value is higher
        annotated &= label.array < len(dataset.classes)
    chosen = image.array[:, annotated].T
    # A fixed thinning keeps every case's share of the statistics bounded.
    return chosen[:: max(1, len(chosen) // FOREGROUND_VOXELS)].astype(np.float32)


def _intensity(channel: NDArray[np.float32]) -> Intensity:
    low, high = np.percentile(channel, (1, 99)).tolist()
    mean = float(channel.mean(dtype=np.float64))
    return Intensity(float(channel.min()), low, mean, high, float(channel.max()))


def _oddities(image: Volume | None, label: Volume | None) -> Iterator[str]:
    """What is odd about a case that can be read."""
    if image is not None:
        yield from image.remarks
        if max(image.spacing) > ANISOTROPIC * min(image.spacing):
            yield (
                f"voxels are more than {ANISOTROPIC:g} times longer along one axis than along "
                "another; check that the network's spacing and patch suit that"
            )
        if min(image.spacing) < SPACING_LIMITS[0] or max(image.spacing) > SPACING_LIMITS[1]:
            low, high = SPACING_LIMITS
            yield f"the voxel spacing lies outside {low:g} to {high:g} mm; check the stored unit"
        if is_nowhere(image.affine):
            yield GEOMETRY_LOST
    if label is not None:
        known = image.remarks if image is not None else ()
        yield from (f"label: {remark}" for remark in label.remarks if remark not in known)
        if not label.array.any():
            yield "the label holds background only; check that it was saved"


def _remarks(looks: Sequence[Look]) -> list[str]:
    """What is odd, each with the cases that it is odd about; of numbers the largest."""
    notes: dict[str, dict[str, str]] = {}
    for look in looks:
        for remark in look.remarks:
            notes.setdefault(gist(remark), {})[look.name] = remark
    lost = notes.get(gist(GEOMETRY_LOST), {})
    if any(k.grid and k.grid.spacing == (1, 1, 1) and k.name not in lost for k in looks):
        notes.pop(gist(GEOMETRY_LOST), None)  # 1 mm with a real origin: the spacing is genuine
    told = []
    for found in notes.values():
        worst = max(found, key=lambda name: numbers(found[name]))
        whose = f", worst in {worst}" if len({*found.values()}) > 1 else ""
        names = f"{_names([*found])} ({len(found)} of {len(looks)} cases{whose})"
        told.append(f"{names}: {found[worst]}")
    return told


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if names[3:] else "")


def _with_classes(dataset: Dataset, looks: Sequence[Look]) -> tuple[Dataset, list[str]]:
    """The data set with classes from the labels where dataset.json names none, and errors."""
    if all(case.label is None for case in dataset.cases):
        return dataset, [no_label(dataset.root)]
    values = {
        value: case.label
        for case, look in zip(dataset.cases, looks, strict=True)
        for value in look.label_voxels or ()
        if case.label is not None
    }
    if dataset.classes or not values:  # of labels that cannot be read, each is an error already
        return dataset, []
    try:
        return replace(dataset, classes=classes_from_values(values, dataset.root)), []
    except InputError as error:
        return dataset, [str(error)]


def _with_channels(dataset: Dataset, looks: Sequence[Look]) -> tuple[Dataset, list[str]]:
    """The data set with the first scan's channels where nothing names them, and errors."""
    pairs = zip(dataset.cases, looks, strict=True)
    found = [(case.images[0], look.grid.channels) for case, look in pairs if look.grid is not None]
    if dataset.channels or not found:
        return dataset, []
    first, count = found[0]
    try:
        named = replace(dataset, channels=channels_from_count(count, first))
    except InputError as error:
        return dataset, [str(error)]
    return named, [
        f"{path}: the number of channels is {other}, but {first} has {count}; correct one of them"
        for path, other in found
        if other != count
    ]


def _shown(learnt: Sequence[Look]) -> set[int]:
    return {value for look in learnt for value in look.label_voxels or ()}


def _never_shown(dataset: Dataset, learnt: Sequence[Look]) -> list[str]:
    shown = _shown(learnt)
    return [
        f"{dataset.root}: no labelled training case shows class {value} ({name}), so it cannot be "
        "learnt; label one that does"
        for value, name in enumerate(dataset.classes)
        if value not in shown
    ]


def _nothing_shown(dataset: Dataset, learnt: Sequence[Look]) -> list[str]:
    labelled = [look for look in learnt if look.label_voxels is not None]
    if not labelled or not dataset.classes or _shown(labelled) & {*range(1, len(dataset.classes))}:
        return []
    return [
        f"{dataset.root}: the labels of all training cases hold background only, so there is "
        "nothing to learn; check that they were saved"
    ]


def _about_plan(looks: Sequence[Look], plan: Plan, data: DataConfig) -> list[str]:
    """What a user should know of the plan's choices."""
    notes = []
    lost = [look for look in looks if look.lost]
    if lost and plan.crop:
        share = sum(k.lost for k in lost) / sum(k.labelled for k in lost)
        notes.append(
            f"{_names([k.name for k in lost])} ({len(lost)} of {len(looks)} cases): {share:.0%} of "
            "the labelled voxels lie where the scan is 0 and are cropped away; set data.crop=false"
        )
    elif lost and data.crop is None:
        notes.append(
            f"{_names([k.name for k in lost])} ({len(lost)} of {len(looks)} cases): labelled "
            "voxels lie where the scan is 0, so scans are not cropped to what is not 0"
        )
    if any(how.masked for how in plan.normalization):
        notes.append(
            "much of the scans is 0 (masked), so intensities are normalised over the rest alone"
        )
    return notes


@contextmanager
def _collecting(errors: list[str]) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        errors.append(str(error))
