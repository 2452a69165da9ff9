"""A scored case as it is shown: its scan, its label and segmentations of it, on one grid."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcamt.data.dataset import Dataset
from dcamt.data.grid import Array
from dcamt.data.volume import Volume, aligned, read_image, read_label
from dcamt.errors import InputError
from dcamt.records.finished_run import segmentation_in

UNCERTAINTY = "uncertainty"
"""The folder beside segmentations that holds CASE_entropy, 0 to 1."""


def read_case(
    dataset: Dataset, name: str, folders: Sequence[Path]
) -> tuple[Volume, NDArray[np.int16], list[NDArray[np.int16]]]:
    """The scan of a labelled case, its label, and its segmentation in each of ``folders``.

    All label maps are (X, Y, Z) on the voxels of the scan. Raises InputError for what is not there
    any more or lies on another grid.
    """
    case = next((case for case in dataset.cases if case.name == name), None)
    if case is None or case.label is None:
        raise InputError(f"{dataset.root}: has no labelled case {name} any more")
    scan, image = case.images[0], read_image(case.images, ordered=False)
    reference = aligned(image, read_label(case.label, ordered=False), scan, case.label)
    found = []
    for folder in folders:
        path = segmentation_in(folder, name)
        found.append(
            aligned(image, read_label(path, ordered=False), scan, path, "segmentation").array
        )
    return image, reference.array, found


def read_uncertainty(image: Volume, scan: Path, folder: Path, name: str) -> Array | None:
    """The map (X, Y, Z) of a case's uncertainty beside its segmentation, 0 to 1, if there is one.

    Raises InputError if it cannot be read or lies on another grid than ``image``, read of ``scan``.
    """
    path = segmentation_in(folder / UNCERTAINTY, f"{name}_entropy")
    if not path.is_file():
        return None
    return aligned(image, read_image([path], ordered=False), scan, path, "uncertainty").array[0]


def has_uncertainty(folder: Path) -> bool:
    """Whether beside segmentations there are maps of uncertainty."""
    return any((folder / UNCERTAINTY).glob("*_entropy.*"))
