"""The cases of a split, and a data set of nnU-Net's own layout made of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dcamt.commands.options import label_count
from dcamt.config import DataConfig
from dcamt.data.dataset import Case, Dataset, read_dataset
from dcamt.data.split import Split, choose_split, hide_labels
from dcamt.data.survey import survey
from dcamt.data.volume import Volume, aligned, check_channels, read_image, read_label, write_volume
from dcamt.errors import InputError, first_of
from dcamt.files import write_json


def chosen(root: Path, splits: Path, labeled: str | None) -> tuple[Dataset, Split]:
    """The labelled and the validation cases, as `dcamt train` has them; no other has its label.

    Channels and classes have names. Raises InputError for what nnU-Net cannot learn from.
    """
    found = read_dataset(root)
    split = choose_split(found, splits, label_count(labeled), seed=0, val_fraction=0)
    if not split.val:
        raise InputError(f"{splits}: names no validation case, so there is nothing to score")
    visible = hide_labels(found, split)
    learnt = tuple(visible.case(name) for name in split.labeled)
    seen = survey(replace(visible, cases=learnt), split.labeled, DataConfig())
    if seen.errors:
        raise first_of(seen.errors)
    validating = tuple(replace(visible.case(name), label=None) for name in split.val)
    return replace(seen.dataset, cases=(*learnt, *validating)), split


def write_raw(dataset: Dataset, split: Split, folder: Path) -> None:
    """A data set as nnU-Net reads it: scans and labels of the labelled cases, scans to segment."""
    for name in split.labeled:
        case = dataset.case(name)
        image = write_image(case, dataset.channels, folder / "imagesTr")
        assert case.label is not None
        label = aligned(image, read_label(case.label), case.images[0], case.label).array
        if dataset.ignore is not None:  # nnU-Net wants the next number after the classes
            label = np.where(label == dataset.ignore, len(dataset.classes), label)
        write_volume(folder / "labelsTr" / f"{name}.nii.gz", label, image.affine, image.forms)
    for name in split.val:
        write_image(dataset.case(name), dataset.channels, folder / "imagesTs")
    values = {name: value for value, name in enumerate(dataset.classes)}
    if dataset.ignore is not None:
        values["ignore"] = len(dataset.classes)
    description = {
        "channel_names": {str(i): name for i, name in enumerate(dataset.channels)},
        "labels": values,
        "numTraining": len(split.labeled),
        "file_ending": ".nii.gz",
    }
    write_json(description, folder / "dataset.json")


def write_image(case: Case, channels: Sequence[str], folder: Path) -> Volume:
    """Write a scan with one file a channel; returns it."""
    image = read_image(case.images)
    check_channels(image, channels, case.images[0])
    for number, channel in enumerate(image.array):
        file = folder / f"{case.name}_{number:04d}.nii.gz"
        write_volume(file, channel, image.affine, image.forms)
    return image
