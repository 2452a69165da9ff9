"""Segment scans of any size and geometry with a trained run."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dcamt.config import Plan
from dcamt.data.formats import ending_of
from dcamt.data.formats.dicom_seg import write_segmentation
from dcamt.data.space import (
    Placement,
    from_prepared,
    place,
    reoriented_shape,
    resample,
    resampled_shape,
    restore,
    spacing_along,
    to_network,
)
from dcamt.data.volume import Volume, check_can_hold, read_image, write_volume
from dcamt.errors import InputError
from dcamt.files import write_json
from dcamt.inference.confidence import expected_dice
from dcamt.inference.peak import peak_memory
from dcamt.inference.predictor import Predictor
from dcamt.inference.sliding_window import Observe, branch_probabilities
from dcamt.memory import check_fits, kept_memory
from dcamt.ops.components import keep_largest
from dcamt.records.run_folder import RunConfig

DICOM_SEG = "dicom-seg"
SUMMARY = "summary"
EXTRA_FOLDERS = ("probabilities", "uncertainty", DICOM_SEG, SUMMARY)
"""Beside the segmentations, for what is written beyond them."""
LOWER = (
    "crop the scan, lower predict.batch in the run's config.yaml, or train with a coarser "
    "data.spacing or a smaller network.width"
)
"""What to do where a scan does not fit into memory."""


@dataclass(frozen=True)
class Extras:
    """What ``predict`` writes or does beyond the segmentation."""

    probabilities: bool = False
    uncertainty: bool = False
    entropy: bool = False  # of the maps of uncertainty this one alone, which takes less memory
    largest_component: bool = False
    dicom_seg: bool = False
    summary: bool = False

    @property
    def maps(self) -> tuple[str, ...]:
        """Which maps of uncertainty are written, by the ends of their names."""
        if self.uncertainty:
            return "entropy", "disagreement"
        return ("entropy",) if self.entropy else ()

    def folders(self) -> list[str]:
        """Folders beside the segmentations that will be written to."""
        wanted = (self.probabilities, bool(self.maps), self.dicom_seg, self.summary)
        return [name for name, on in zip(EXTRA_FOLDERS, wanted, strict=True) if on]


def predict_case(
    predictor: Predictor,
    config: RunConfig,
    images: Sequence[Path],
    output: Path,
    extras: Extras = Extras(),
    series: int | None = None,
    observe: Observe = lambda done, total: None,
) -> tuple[str, ...]:
    """Segment one scan and write it to ``output`` in the scan's own geometry, if it is not there.

    The segmentation is uint8 with the scan's size and affine, and with its sform and qform where
    both are NIfTI. ``extras`` adds folders beside it:
    probabilities/CASE_CLASS.nii.gz (0 to 1), uncertainty/CASE_entropy.nii.gz (0 certain to 1) and
    uncertainty/CASE_disagreement.nii.gz (total variation between two branches, 0 to 1), all
    float32 and in the format of ``output``, dicom-seg/CASE.dcm, and summary/CASE.json
    (`dcamt.records.summary.CaseNumbers`). ``series`` says which one of several in a DICOM folder;
    ``observe`` is told of every batch of windows. Returns what a user should know of the scan's
    files. Raises InputError if the scan cannot be read, has other channels than the run was trained
    on, or lies in a way that the format of ``output`` cannot hold.
    """
    plan = config.plan
    image = read_scan(images, plan, series)
    check_can_hold(output, image)
    check_memory(image, images[0], predictor, config, extras)
    window = math.prod(plan.patch) * config.predict.batch
    # A small scan's arrays are given to each other, too; large ones would raise the peak.
    with kept_memory(max(window, math.prod(image.shape) * len(plan.classes) // 4)):
        array, placement = to_network(image, plan)
        write = partial(write_volume, affine=image.affine, forms=image.forms)
        remarks = image.remarks
        millilitres = abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000
        del image  # a large scan and its probabilities are each most of the memory
        with kept_memory(window):
            branches = branch_probabilities(
                predictor,
                torch.from_numpy(array),
                plan.patch,
                len(plan.classes),
                config.predict,
                mean=not extras.uncertainty,
                observe=observe,
            )
        del array
        probabilities = branches[0] if len(branches) == 1 else branches.mean(0)
        restored = restored_probabilities(probabilities, placement)
        if not extras.maps:
            del branches, probabilities
        segmentation = most_probable(restored)
        expected = expected_dice(restored, segmentation) if extras.summary else []
        if not extras.probabilities:
            del restored
        if extras.largest_component:
            segmentation = keep_largest(segmentation)
        files = extra_files(output, extras, plan.classes)
        if extras.probabilities:
            for k, path in enumerate(files["probabilities"]):
                write(path, restored[k])
        if extras.maps:
            maps = [entropy(probabilities)]
            if extras.uncertainty:
                maps.append(disagreement(branches))
            for path, values in zip(files["uncertainty"], maps, strict=True):
                write(path, restore(values[None], placement)[0])
        if extras.dicom_seg:
            (path,) = files[DICOM_SEG]
            write_segmentation(path, segmentation, plan.classes, plan.codes, images[0], series)
        if extras.summary:
            (path,) = files[SUMMARY]
            found = [
                {
                    "volume_ml": np.count_nonzero(segmentation == k) * millilitres,
                    "expected_dice": dice,
                }
                for k, dice in enumerate(expected, 1)
            ]
            write_json({"classes": found}, path)
        # The segmentation comes last: where it exists, the case is done, and may be corrected.
        if not os.path.lexists(output):
            write(output, segmentation)
    return remarks


def read_scan(images: Sequence[Path], plan: Plan, series: int | None = None) -> Volume:
    """A scan of the channels of ``plan``; InputError if it has others or cannot be read."""
    image = read_image(images, series)
    if len(image.array) != len(plan.channels):
        raise InputError(
            f"{images[0]}: the number of channels is {len(image.array)}, but the run was trained "
            f"on {len(plan.channels)} ({', '.join(plan.channels)}); give a scan of just these"
        )
    return image


def check_memory(
    image: Volume, path: Path, predictor: Predictor, config: RunConfig, extras: Extras
) -> None:
    """InputError if the memory that is free cannot hold what comes after ``image`` was read."""
    plan = config.plan
    _, placement = place(image, plan.orientation, plan.crop)
    try:
        prepared = resampled_shape(placement.cropped, spacing_along(image, placement), plan)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    peak = peak_memory(
        placement,
        prepared,
        config,
        predictor,
        probabilities=extras.probabilities,
        maps=len(extras.maps),
        largest_component=extras.largest_component,
    )
    size = " x ".join(map(str, image.shape))
    grid = " x ".join(map(str, prepared))
    check_fits(
        peak - image.array.nbytes,
        f"{path}: segmenting {size} voxels ({grid} for the network)",
        LOWER,
    )


def extra_files(output: Path, extras: Extras, classes: Sequence[str]) -> dict[str, list[Path]]:
    """What ``extras`` adds to a segmentation, by the name of the folder beside it."""
    ending = ending_of(output.name) or ""
    case = output.name[: len(output.name) - len(ending)]
    names = {
        "probabilities": [f"{_map_name(case, structure)}{ending}" for structure in classes],
        "uncertainty": [f"{case}_{kind}{ending}" for kind in extras.maps],
        DICOM_SEG: [f"{case}.dcm"],
        SUMMARY: [f"{case}.json"],
    }
    return {f: [output.parent / f / name for name in names[f]] for f in extras.folders()}


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """``-sum_k p ln p / ln K`` of ``(K, x, y, z)``: 0 certain, 1 all classes equal."""
    logs = probabilities.clamp(min=1e-12).log()
    return -(probabilities * logs).sum(0) / float(np.log(len(probabilities)))


def disagreement(branches: torch.Tensor) -> torch.Tensor:
    """Largest total variation between a branch and the mean, ``(N, K, x, y, z)`` to [0, 1].

    ``0.5 sum_k |p_k - q_k|`` of two branches is twice their distance from the mean.
    """
    distance = 0.5 * (branches - branches.mean(0)).abs().sum(1)
    return (2 * distance.amax(0)).clamp(max=1)


def restored_probabilities(
    probabilities: torch.Tensor, placement: Placement
) -> NDArray[np.float32]:
    """Probabilities ``(K, x, y, z)`` of the network's grid on the scan's: ``(K, X, Y, Z)``.

    Both float32. The background is what the other classes leave: 1 outside the crop.
    """
    full = np.zeros((len(probabilities), *reoriented_shape(placement)), np.float32)
    background = full[0]
    background[...] = 1.0
    for k, values in enumerate(probabilities[1:], 1):
        full[k, *placement.box] = resample(values[None], placement.cropped)[0]
        background[placement.box] -= full[k, *placement.box]
    np.maximum(background, 0, out=background)  # rounding alone makes it less
    return from_prepared(full, placement)


def most_probable(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The first class of the highest probability, ``(K, X, Y, Z)`` to ``(X, Y, Z)``.

    Slab by slab: argmax along the first axis takes five times as long, and classes of 64 bits.
    """
    classes = np.zeros(probabilities.shape[1:], np.uint8)
    for x, found in enumerate(classes):
        best = probabilities[0, x]
        for k in range(1, len(probabilities)):
            np.copyto(found, k, where=probabilities[k, x] > best)
            best = np.maximum(best, probabilities[k, x])
    return classes


def _map_name(case: str, structure: str) -> str:
    """Name of a probability map, without its ending."""
    return f"{case}_{''.join(c if c.isalnum() or c in '-_' else '_' for c in structure)}"
