"""Measure a folder of predictions against their labels."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcamt.data.dataset import read_dataset
from dcamt.data.description import read_description
from dcamt.data.folder import by_case, is_of_the_system, volume_file
from dcamt.data.formats import ending_of, hdf5
from dcamt.data.volume import aligned, read_label
from dcamt.errors import InputError
from dcamt.evaluation.metrics import (
    BOTH_EMPTY,
    INVENTED,
    METRICS,
    MISSED,
    OK,
    TITLES,
    metrics_per_class,
)
from dcamt.files import check_fetched
from dcamt.memory import told_of_memory
from dcamt.records.scores import (
    CaseScore,
    ClassScore,
    Counts,
    Distances,
    Metric,
    Metrics,
    Named,
    Scores,
    StructureScore,
    as_metrics,
    metrics_in,
)

UNITS = ("mm", "voxels")
BACKGROUND = 0


def evaluate(
    predictions: Path,
    labels: Path,
    unit: str = "mm",
    metrics: Iterable[str] = METRICS,
    tolerance: float = 1.0,
) -> Scores:
    """Measure every class of every prediction against the label of the same name.

    Args:
        predictions: folder of ``CASE.nii.gz``, or one such file, of any format.
        labels: folder of ``CASE.nii.gz``, or the root of a data set (its ``labelsTr`` or
            ``labels`` is taken). Labels without a prediction are counted, not measured.
        unit: unit of the distances, "mm" or "voxels".
        metrics: keys of `dcamt.evaluation.metrics.TITLES`, in the order wanted.
        tolerance: distance up to which ``nsd`` takes two surfaces for one, in `unit`.

    Returns:
        The whole scores, ready for JSON: ``mean`` is over the rows, one a case and class, and
        ``std`` over the cases. None where there is nothing to measure.

    Raises:
        InputError: an unknown metric or unit, a tolerance below 0; a folder or file that is
            absent, empty, without its partner, on another grid than its partner, or with a value
            that ``dataset.json`` does not list.
    """
    asked = _asked(metrics, unit, tolerance)  # before any file is opened
    prediction_files = _prediction_files(predictions)
    label_folder, label_files = _labels(labels)
    label_files = by_case(label_files, prediction_files)
    prediction_files = by_case(prediction_files, label_files)
    _check_all_labelled(prediction_files, label_files, predictions, label_folder)
    names, ignore = _declared_classes(label_folder)
    return evaluate_files(prediction_files, label_files, names, ignore, unit, asked, tolerance)


def evaluate_files(
    prediction_files: Mapping[str, Path],
    label_files: Mapping[str, Path],
    names: Mapping[int, str],
    ignore: int | None,
    unit: str = "mm",
    metrics: Sequence[Metric] = METRICS,
    tolerance: float = 1.0,
) -> Scores:
    """Like `evaluate`, of files by case, each prediction with its label.

    ``names`` are those of the classes by value, without background; empty if nothing declares them.
    ``ignore`` is the value of voxels that nobody annotated.
    """
    measured: dict[tuple[str, int], StructureScore] = {}
    measure = partial(_measure, unit=unit, metrics=metrics, tolerance=tolerance)
    for case, prediction_file in prediction_files.items():
        with told_of_memory(f"{prediction_file}: cannot be measured", "crop it and its label"):
            rows_of_case = measure(prediction_file, label_files[case], names, ignore)
        measured |= {(case, row["class"]): row for row in rows_of_case}
    classes = sorted(names or {value for _, value in measured})
    nothing = as_metrics(dict.fromkeys(metrics))

    rows: list[CaseScore] = []
    for value in classes:
        name: Named = {"class_name": names[value]} if names else {}
        # In neither file of a case.
        absent: StructureScore = {"class": value, **nothing, "outcome": BOTH_EMPTY}
        rows += [
            {"case": case, "class": value, **name, **measured.get((case, value), absent)}
            for case in prediction_files
        ]
    distances: Distances = {"unit": unit}
    if "nsd" in metrics:
        distances["tolerance"] = tolerance
    not_predicted = len(label_files.keys() - prediction_files.keys())
    return scores_of(rows, distances, metrics, not_predicted)


def scores_of(
    rows: Sequence[CaseScore],
    distances: Distances,
    metrics: Sequence[Metric] = METRICS,
    not_predicted: int = 0,
) -> Scores:
    """The whole scores of rows, one a case and class, which may come from several evaluations."""
    of_class: dict[int, list[CaseScore]] = {}
    for row in rows:
        of_class.setdefault(row["class"], []).append(row)
    per_class: dict[str, ClassScore] = {}
    for value in sorted(of_class):
        first = of_class[value][0]
        name: Named = {"class_name": first["class_name"]} if "class_name" in first else {}
        mean, std, counts = _summary(of_class[value], metrics)
        per_class[str(value)] = {**name, **mean, "std": std, **counts}
    mean, std, counts = _summary(rows, metrics)
    return {
        "cases": sorted(rows, key=lambda row: row["case"]),
        "mean": mean,
        "std": std,
        **counts,
        "per_class": per_class,
        "not_predicted": not_predicted,
        **distances,
    }


def _asked(metrics: Iterable[str], unit: str, tolerance: float) -> list[Metric]:
    """The metrics that are asked for, each once; InputError if one or another setting is none."""
    names = tuple(dict.fromkeys(metrics))
    if unit not in UNITS:
        raise InputError(f"unit: '{unit}' is not known; choose {' or '.join(UNITS)}")
    unknown = [f"{name!r} is not known" for name in names if name not in TITLES]
    if unknown or not names:
        fault = unknown[0] if unknown else "none is named"
        raise InputError(f"metrics: {fault}; choose from {', '.join(TITLES)}")
    if not 0 <= tolerance < math.inf:
        raise InputError(f"tolerance {tolerance:g}: give a distance of 0 or more, in {unit}")
    return metrics_in(names)


def _measure(
    prediction_file: Path,
    label_file: Path,
    names: Mapping[int, str],
    ignore: int | None,
    *,
    unit: str,
    metrics: Sequence[Metric],
    tolerance: float,
) -> list[StructureScore]:
    """Rows of one case, for the classes that one of the two files holds."""
    prediction, label = read_label(prediction_file), read_label(label_file)
    label = aligned(prediction, label, prediction_file, label_file)
    present: set[int] = set()
    for file, volume in ((prediction_file, prediction), (label_file, label)):
        values = _classes_in(volume.array, ignore)
        unknown = values - names.keys()
        if names and unknown:
            raise InputError(
                f"{file}: holds the value {min(unknown)}, which dataset.json does not list; "
                "declare the class there, or correct the file"
            )
        present |= values
    spacing = label.spacing if unit == "mm" else (1.0, 1.0, 1.0)
    pair = prediction.array, label.array
    return metrics_per_class(*pair, sorted(present), spacing, ignore, metrics, tolerance)


def _classes_in(label: NDArray[np.integer[Any]], ignore: int | None) -> set[int]:
    return {int(value) for value in np.unique(label)} - {BACKGROUND, ignore}


def _summary(
    rows: Sequence[CaseScore], metrics: Sequence[Metric]
) -> tuple[Metrics, Metrics, Counts]:
    """Mean of each of ``metrics`` over rows, its standard deviation over cases, and outcome counts.

    A row counts where it has a value: not where both masks are empty, and not for the distances
    of a missed or invented class. The standard deviation is of the population, over the mean of
    each case, and None below two cases.
    """
    mean: Metrics = {}
    std: Metrics = {}
    for metric in metrics:
        of_case: dict[str, list[float]] = {}
        for row in rows:
            value = row[metric]
            if value is not None:
                of_case.setdefault(row["case"], []).append(value)
        case_means = [fmean(values) for values in of_case.values()]
        mean[metric] = fmean(chain(*of_case.values())) if of_case else None
        std[metric] = pstdev(case_means) if len(case_means) > 1 else None
    found = Counter(row["outcome"] for row in rows)
    counts: Counts = {
        "ok": found[OK],
        "missed": found[MISSED],
        "invented": found[INVENTED],
        "both_empty": found[BOTH_EMPTY],
    }
    return mean, std, counts


def _prediction_files(predictions: Path) -> dict[str, Path]:
    """Case name -> file, sorted by name."""
    if not predictions.exists():
        raise InputError(f"{predictions}: no such folder or file; check the path")
    if predictions.is_dir():
        return _files_in(predictions)
    entry = volume_file(predictions)
    if entry is None:
        raise InputError(
            f"{predictions}: is no volume; give a file such as CASE.nii.gz or a folder of them"
        )
    return dict([entry])


def _labels(place: Path) -> tuple[Path, dict[str, Path]]:
    """The folder of the labels, and the label file of each case.

    HDF5 files that hold an image only are left out.
    """
    check_fetched(place)
    if not place.is_dir():
        raise InputError(f"{place}: is not a folder; give the folder of labels or the data set")
    folders = [place / name for name in ("labelsTr", "labels")]
    for folder in folders:
        check_fetched(folder)
    folder = next((folder for folder in folders if folder.is_dir()), place)
    listed = (read_description(place).listed or {}).values()
    if any(label is not None and (place / label).exists() for _, label in listed):
        cases = read_dataset(place).cases
        return place, {case.name: case.label for case in cases if case.label is not None}
    return folder, {
        case: path
        for case, path in _files_in(folder).items()
        if ending_of(path.name) != ".h5" or hdf5.has_label(path)
    }


def _files_in(folder: Path) -> dict[str, Path]:
    """Case name -> file, sorted by name."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        entry = None if is_of_the_system(path) else volume_file(path)
        if entry is None:
            continue
        case, file = entry
        if case in files:
            raise InputError(f"{path}: there is also {files[case].name}; remove one of the two")
        files[case] = file
    if not files:
        raise InputError(f"{folder}: holds no .nii.gz or other volume; give the folder that does")
    return files


def _check_all_labelled(
    predicted: Iterable[str], labelled: Iterable[str], predictions: Path, labels: Path
) -> None:
    missing = sorted(set(predicted) - set(labelled))
    if missing:
        listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise InputError(
            f"{predictions}: no label of the same name in {labels} for {len(missing)} of the "
            f"predictions ({listed}); add these labels, or move the predictions elsewhere"
        )


def _declared_classes(label_folder: Path) -> tuple[dict[int, str], int | None]:
    """Classes of the ``dataset.json`` in `label_folder` or above it: {value: name}, ignore value.

    The classes are without background and ignore value; there are none without such a file.
    """
    told = read_description(label_folder)
    if not told.classes:
        told = read_description(label_folder.absolute().parent)
    return dict(enumerate(told.classes[1:], 1)), told.ignore
