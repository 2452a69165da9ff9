"""What the files of one case show, each decoded once."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from dcamt.config import DataConfig, Plan
from dcamt.data.dataset import Case, Dataset
from dcamt.data.formats import Stamps, stamps_of
from dcamt.data.grid import is_nowhere
from dcamt.data.plan import ANISOTROPIC, is_anisotropic
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

SPACING_LIMITS = (0.01, 50.0)  # mm
FOREGROUND_VOXELS = 10_000
"""Labelled voxels of a case whose intensities are noted, about."""
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

    def prepared(self, plan: Plan) -> Shape:
        """Voxels once prepared by ``plan``; InputError if no memory holds them."""
        return resampled_shape(self.cropped if plan.crop else self.whole, self.along, plan)


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


class Room:
    """Volumes that wait in memory, as long as there is room, by the state of their files."""

    def __init__(self, size: float):
        self.left, self.lock = size, Lock()
        self.kept: dict[Stamps, Volumes] = {}

    def offer(self, stamps: Stamps, image: Volume, label: Volume | None) -> None:
        """Keep the volumes of a case if there is room; threads may call this at once."""
        needed = image.array.nbytes + (0 if label is None else label.array.nbytes)
        with self.lock:
            if needed <= self.left:
                self.left -= needed
                self.kept[stamps] = image, label


def look_at(case: Case, dataset: Dataset, data: DataConfig, intensities: bool, room: Room) -> Look:
    """Read ``case`` and say what the plan needs of it, and what is wrong with its files.

    ``intensities``: whether those under the label are collected. What was read is offered to
    ``room``. A file that cannot be used is told in ``Look.errors``, and nothing is raised.
    """
    errors: list[str] = []
    image: Volume | None = None
    label: Volume | None = None
    stamps: Stamps | None = None
    with suppress(InputError):  # reading says what is wrong
        # Before anything is read, so that a file that changes meanwhile is read again.
        stamps = stamps_of((*case.images, *(() if case.label is None else [case.label])))
    with collecting(errors):
        image = read_image(case.images)
        if dataset.channels:
            check_channels(image, dataset.channels, case.images[0])
    if case.label is not None:
        with collecting(errors):
            label = read_label(case.label)
        with collecting(errors):
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
        if not errors and stamps is not None:
            room.offer(stamps, image, label)
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
        if is_anisotropic(image.spacing):
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


@contextmanager
def collecting(errors: list[str]) -> Iterator[None]:
    """Add the message of an InputError to ``errors`` and go on."""
    try:
        yield
    except InputError as error:
        errors.append(str(error))
