"""Open every file of a data set once: what planning needs of it, and everything that is wrong.

What refuses a training and what `dcamt inspect` calls an error are the same list, made here.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from dcamt.config import DataConfig, Plan
from dcamt.data.classes import (
    channels_from_count,
    check_label_values,
    classes_from_values,
    no_label,
)
from dcamt.data.dataset import VOLUMES_AT_ONCE, Case, Dataset
from dcamt.data.formats import Stamps
from dcamt.data.formats.stored import gist, numbers
from dcamt.data.look import GEOMETRY_LOST, Look, Room, Volumes, collecting, look_at
from dcamt.data.plan import Fingerprint, StrideOf, check_plan, make_plan, sixteen
from dcamt.errors import InputError
from dcamt.memory import free_memory

KEPT = 1 / 4
"""Share of the free memory in which volumes may wait to be prepared, so that they are read once."""
_UNTOLD = 8e9
"""Bytes of memory that count as free where the system does not tell."""


@dataclass(frozen=True, eq=False)
class Survey:
    """A data set that has been looked at.

    dataset: with its classes, also where dataset.json does not name them. plan: None if there are
    errors. kept: volumes in memory, by the state of their files, as far as there was room.
    """

    dataset: Dataset
    looks: tuple[Look, ...]
    plan: Plan | None
    errors: list[str]
    warnings: list[str]
    kept: dict[Stamps, Volumes]


def survey(
    dataset: Dataset,
    training: Sequence[str],
    data: DataConfig,
    *,
    plan: Plan | None = None,
    stride: StrideOf = sixteen,
    intensities: bool = False,
    keep: bool = False,
    labels: bool = True,
) -> Survey:
    """Look at every case of ``dataset``, whose hidden labels are left out already.

    ``training`` names the cases that are planned for and learnt from; the others validate.
    ``plan`` is taken in place of one of our own, for a network of that ``stride``. With
    ``intensities`` those are summed up, too; with ``keep`` volumes stay in memory, up to a share of
    it. Without ``labels`` none is asked for, and classes that nothing names are given a name.
    Raises nothing for bad files: they are among the errors.
    """
    free = free_memory()
    room = Room(KEPT * (free if math.isfinite(free) else _UNTOLD) if keep else 0.0)

    def at(case: Case) -> Look:
        return look_at(case, dataset, data, intensities, room)

    with ThreadPoolExecutor(VOLUMES_AT_ONCE) as pool:
        looks = tuple(pool.map(at, dataset.cases))
    errors: list[str] = []
    if labels:
        dataset, of_classes = _with_classes(dataset, looks)
    else:
        dataset, of_classes = _with_any_classes(dataset, plan), []
    dataset, of_channels = _with_channels(dataset, looks)
    for case, look in zip(dataset.cases, looks, strict=True):
        errors += look.errors
        if case.label is not None and look.label_voxels is not None and dataset.classes:
            with collecting(errors):
                count = len(dataset.classes)
                check_label_values(look.label_voxels, count, dataset.ignore, case.label)
    learnt = [look for look in looks if look.name in training]
    warnings = [*dataset.notes, *_remarks(looks)]
    warnings += _never_shown(dataset, learnt) if labels else []
    errors += of_channels + of_classes + _nothing_shown(dataset, learnt)
    chosen: Plan | None = None
    if not errors:
        with collecting(errors):
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
                look.grid.prepared(plan)
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


def _with_any_classes(dataset: Dataset, plan: Plan | None) -> Dataset:
    """The data set with classes for a training that has no use of them, which a plan must have."""
    if dataset.classes:
        return dataset
    return replace(dataset, classes=plan.classes if plan else ("background", "unknown"))


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
