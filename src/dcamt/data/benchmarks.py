"""Two published data sets, prepared as the semi-supervised literature prepares them.

Both are cropped around the organ by its label, in unlabelled and test scans too. That is the
benchmarks' convention and makes the task easier than it is: a new scan has no label to be cropped
by. So it exists in these presets alone, and what they write says so.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray
from rich.console import Console
from scipy import ndimage

from dcamt.data.formats import dicom
from dcamt.data.grid import Box, bounding_box
from dcamt.data.volume import Volume, aligned, read_image, read_label, write_volume
from dcamt.errors import InputError
from dcamt.files import refuse_existing, refuse_links, remove_temporary, write_text

MARK = "benchmark.json"
NOTE = (
    "Benchmark preparation '{preset}' of dcamt: every scan, test scans included, was cropped "
    "around the organ by its own label. Figures on these crops compare with published ones only; "
    "they say nothing of scans whose label is not known."
)
LA_MARGIN = (10, 20)  # voxels, drawn anew for each side
LA_PATCH = 112  # voxels; crops are at least as wide where the scan is
LA_ATRIUM = 255
PANCREAS_WINDOW = (-120.0, 240.0)  # HU
PANCREAS_SPACING = 1.0  # mm
PANCREAS_MARGIN = 25  # voxels

Sources = dict[str, tuple[Path, Path]]  # case -> image, label
Array = NDArray[Any]


@dataclass(frozen=True)
class Preset:
    """find: image and label of every case of a source; make: the crop of one, with its label."""

    title: str
    channel: str
    organ: str
    find: Callable[[Path], Sources]
    make: Callable[[str, Path, Path], tuple[Volume, Volume]]


def prepare_benchmark(preset: str, source: Path, out: Path, quiet: bool = False) -> Path:
    """Write ``source`` as a data set in nnU-Net's layout into ``out``; returns ``out``.

    Cases that are done are skipped. Raises InputError for a source that is not as distributed, and
    for a folder ``out`` that holds anything but a part of the same preset.
    """
    if preset not in PRESETS:
        raise InputError(f"preset '{preset}' is unknown; known presets: {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; give the folder of the data set")
    cases = chosen.find(source)
    note = NOTE.format(preset=preset)
    mark = json.dumps({"preset": preset, "note": note}, indent=1) + "\n"
    _refuse_others(out, mark)
    # First of all, so that there is never a crop without the mark.
    write_text(out / MARK, mark)
    remove_temporary(out)
    console = Console(stderr=True, quiet=quiet, markup=False, emoji=False)
    for number, (case, (image_path, label_path)) in enumerate(sorted(cases.items()), 1):
        image_file = out / "imagesTr" / f"{case}_0000.nii.gz"
        label_file = out / "labelsTr" / f"{case}.nii.gz"
        if not (image_file.exists() and label_file.exists()):
            image, label = chosen.make(case, image_path, label_path)
            write_volume(image_file, image.array[0], image.affine)
            write_volume(label_file, label.array, label.affine)
        console.print(f"{number}/{len(cases)}  {case}", highlight=False)
    description = {
        "name": f"{chosen.title} (benchmark, cropped by label)",
        "description": note,
        "channel_names": {"0": chosen.channel},
        "labels": {"background": 0, chosen.organ: 1},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    write_text(out / "dataset.json", json.dumps(description, indent=1) + "\n")
    return out


def find_left_atrium(source: Path) -> Sources:
    """CASE/lgemri.nrrd with CASE/laendo.nrrd beside it."""
    cases: Sources = {}
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        image, label = folder / "lgemri.nrrd", folder / "laendo.nrrd"
        if image.is_file():
            if not label.is_file():
                raise InputError(f"{folder}: laendo.nrrd is missing beside lgemri.nrrd; add it")
            cases[_plain(folder)] = (image, label)
    if not cases:
        raise InputError(
            f"{source}: holds no CASE/lgemri.nrrd; give the folder of the challenge's training set"
        )
    return cases


def make_left_atrium(case: str, image_path: Path, label_path: Path) -> tuple[Volume, Volume]:
    """Zero mean and unit variance over the whole scan, then a crop in x and y; z stays whole.

    The crop is the atrium's box with 10 to 20 voxels more on each side, drawn by the case's name.
    """
    image, label = read_image([image_path]), read_label(label_path)
    label = aligned(image, label, image_path, label_path)
    if not set(np.unique(label.array)) <= {0, LA_ATRIUM}:
        raise InputError(
            f"{label_path}: holds other values than 0 and {LA_ATRIUM}; give the challenge's files"
        )
    scan = image.array[0].astype(np.float64)
    deviation = scan.std()
    if deviation == 0:
        raise InputError(f"{image_path}: all intensities are equal; copy the file again")
    normal = ((scan - scan.mean()) / deviation).astype(np.float32)
    atrium = label.array == LA_ATRIUM
    box = _organ_box(atrium, label_path)
    seed = int.from_bytes(hashlib.sha256(case.encode()).digest()[:8])
    margins = np.random.default_rng(seed).integers(*LA_MARGIN, size=(2, 2), endpoint=True)
    x, y = (
        _widened(box[axis], atrium.shape[axis], before, after, LA_PATCH)
        for axis, (before, after) in enumerate(margins.tolist())
    )
    return _cropped(normal, atrium, image.affine, (x, y, slice(0, atrium.shape[2])))


def find_pancreas(source: Path) -> Sources:
    """Folders PANCREAS_0001, each with one DICOM series somewhere below, and label0001.nii.gz."""
    folders: dict[str, Path] = {}
    for path in sorted(source.rglob("PANCREAS_*"), key=lambda path: len(path.parts)):
        match = re.fullmatch(r"PANCREAS_(\d{4})", path.name)
        if match and path.is_dir():
            known = folders.setdefault(match[1], path)
            if not path.is_relative_to(known):
                raise InputError(f"{path}: there is also {known}; remove one of the two")
    labels = {
        match[1]: path
        for path in sorted(source.rglob("label*.nii*"))
        if (match := re.fullmatch(r"label(\d{4})\.nii(\.gz)?", path.name))
    }
    if not folders:
        raise InputError(
            f"{source}: holds no folder PANCREAS_0001 and so on; give the folder of the collection "
            "as downloaded, with its labels"
        )
    for number, folder in folders.items():
        if number not in labels:
            raise InputError(f"{folder}: label{number}.nii.gz is missing in {source}; add it")
    return {
        f"PANCREAS_{number}": (_series_below(folder), labels[number])
        for number, folder in folders.items()
    }


def make_pancreas(case: str, image_path: Path, label_path: Path) -> tuple[Volume, Volume]:
    """Hounsfield units clipped to the window, 1 mm, cropped to the pancreas and 25 voxels around.

    The label is first flipped onto the scan's axes, resampled linearly and cut at one half.
    """
    image = read_image([image_path])
    organ = _onto(image, read_label(label_path), label_path) > 0
    clipped = np.clip(image.array[0], *PANCREAS_WINDOW)
    spacing = np.array(image.spacing)
    shape = np.maximum(1, np.rint(np.array(organ.shape) * spacing / PANCREAS_SPACING)).astype(int)
    # Both grids begin at the same corner; voxel i of the new one lies at i * step + first.
    step = PANCREAS_SPACING / spacing
    first = 0.5 * step - 0.5

    def resample(values: Array) -> NDArray[np.float32]:
        return ndimage.affine_transform(
            values, step, first, tuple(shape), np.float32, order=1, mode="nearest"
        )

    affine = image.affine @ np.diag([*step, 1.0])
    affine[:3, 3] = (image.affine @ [*first, 1.0])[:3]
    fine = resample(organ.astype(np.float32)) >= 0.5
    x, y, z = (
        _widened(side, size, PANCREAS_MARGIN, PANCREAS_MARGIN)
        for side, size in zip(_organ_box(fine, label_path), fine.shape, strict=True)
    )
    return _cropped(resample(clipped), fine, affine, (x, y, z))


def _onto(image: Volume, label: Volume, path: Path) -> Array:
    """The label on the scan's voxels.

    Its files run along other directions than the DICOM slices and have an origin of their own: the
    directions are taken from the two headers, the origin is not.
    """
    have, want = (orientations.io_orientation(volume.affine) for volume in (label, image))
    array = orientations.apply_orientation(label.array, orientations.ornt_transform(have, want))
    if array.shape != image.shape:
        raise InputError(
            f"{path}: the label has {' x '.join(map(str, label.shape))} voxels, which do not fit "
            f"the scan's {' x '.join(map(str, image.shape))}; take the label of this scan"
        )
    return np.asarray(array)


def _series_below(folder: Path) -> Path:
    """The one folder at or below ``folder`` that holds DICOM slices."""
    below = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
    found = [path for path in below if dicom.is_series(path)]
    if len(found) != 1:
        raise InputError(
            f"{folder}: has {len(found)} folders with DICOM slices below it, but must have one; "
            "keep the scan and remove the others"
        )
    return found[0]


def _organ_box(mask: NDArray[np.bool_], path: Path) -> Box:
    box = bounding_box(mask)
    if box is None:
        raise InputError(f"{path}: the label shows no voxel of the organ; take the complete file")
    return box


def _widened(side: slice, size: int, before: int, after: int, least: int = 0) -> slice:
    """A side of a box with a margin, and of at least so many of ``size`` voxels if it can be."""
    begin, end = side.start, side.stop
    lacking = max(0, least - (end - begin))
    begin, end = begin - lacking // 2 - before, end + lacking - lacking // 2 + after
    # At an edge of the scan the other side gives what is lacking.
    end = min(max(end, max(begin, 0) + least), size)
    return slice(max(0, min(begin, end - least)), end)


def _cropped(
    image: Array, mask: NDArray[np.bool_], affine: Array, box: Box
) -> tuple[Volume, Volume]:
    placed = affine.copy()
    placed[:3, 3] = (affine @ [*(part.start for part in box), 1.0])[:3]
    return Volume(image[box][None], placed), Volume(mask[box].astype(np.int16), placed)


def _plain(folder: Path) -> str:
    if not folder.name.isprintable() or folder.name.startswith(".") or "\\" in folder.name:
        raise InputError(f"{folder}: the name has characters no case may have; rename the folder")
    return folder.name


def _refuse_others(out: Path, mark: str) -> None:
    """InputError unless ``out`` is new, empty, or begun by the same preset."""
    same = (out / MARK).is_file() and (out / MARK).read_text(errors="replace") == mark
    refuse_existing(out, same, "choose another folder")
    refuse_links(out, ("imagesTr", "labelsTr", MARK))


PRESETS = {
    "la": Preset("Left atrium", "LGE-MRI", "left_atrium", find_left_atrium, make_left_atrium),
    "pancreas-nih": Preset("Pancreas-NIH", "CT", "pancreas", find_pancreas, make_pancreas),
}
