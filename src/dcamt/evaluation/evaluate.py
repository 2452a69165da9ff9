"""Measure a folder of predictions against their labels, and write down the result."""

import json
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dcamt.data.dataset import LITERATURE, read_json, volume_file
from dcamt.data.formats import hdf5
from dcamt.data.volume import check_same_grid, read_label
from dcamt.errors import InputError
from dcamt.evaluation.metrics import (
    BOTH_EMPTY,
    INVENTED,
    METRICS,
    MISSED,
    OK,
    metrics_per_class,
)
from dcamt.files import write_text
from dcamt.memory import told_of_memory

if TYPE_CHECKING:
    from rich.table import Table

UNITS = ("mm", "voxels")
BACKGROUND = 0

Row = dict[str, Any]

# A class that neither the prediction nor the label of a case holds.
ABSENT: Row = {**dict.fromkeys(METRICS), "outcome": BOTH_EMPTY}


def evaluate(predictions: Path, labels: Path, unit: str = "mm") -> dict[str, Any]:
    """Measure every class of every prediction against the label of the same name.

    Args:
        predictions: folder of ``CASE.nii.gz``, or one such file, of any format.
        labels: folder of ``CASE.nii.gz``, or the root of a data set (its ``labelsTr`` or
            ``labels`` is taken). Labels without a prediction are counted, not measured.
        unit: unit of the distances, "mm" or "voxels".

    Returns:
        ``cases`` (one row a case and class), ``mean`` over the rows and ``std`` over the cases,
        the counts of outcomes ``ok``, ``missed``, ``invented`` and ``both_empty``, the same for
        each class under ``per_class``, ``not_predicted`` (number of labels without a prediction)
        and ``unit``. Ready for JSON; None where there is nothing to measure.

    Raises:
        InputError: a folder or file that is absent, empty, without its partner, on another grid
            than its partner, or with a value that ``dataset.json`` does not list.
    """
    if unit not in UNITS:
        raise InputError(f"unit: '{unit}' is not known; choose {' or '.join(UNITS)}")
    label_folder = _label_folder(labels)
    prediction_files, label_files = _prediction_files(predictions), _label_files(label_folder)
    _check_all_labelled(prediction_files, label_files, predictions, label_folder)
    names, ignore = _declared_classes(label_folder)

    measured: dict[tuple[str, int], Row] = {}
    for case, prediction_file in prediction_files.items():
        with told_of_memory(f"{prediction_file}: cannot be measured", "crop it and its label"):
            rows_of_case = _measure(prediction_file, label_files[case], unit, names, ignore)
        measured |= {(case, row["class"]): row for row in rows_of_case}
    classes = sorted(names or {value for _, value in measured})

    rows: list[Row] = []
    per_class: dict[str, Row] = {}
    for value in classes:
        name = {"class_name": names[value]} if names else {}
        of_class = [
            {"case": case, "class": value, **name, **measured.get((case, value), ABSENT)}
            for case in prediction_files
        ]
        summary = _summary(of_class)
        per_class[str(value)] = name | summary.pop("mean") | summary
        rows += of_class
    return {
        "cases": sorted(rows, key=lambda row: row["case"]),
        **_summary(rows),
        "per_class": per_class,
        "not_predicted": len(label_files.keys() - prediction_files.keys()),
        "unit": unit,
    }


def write_json(result: dict[str, Any], path: Path) -> None:
    """Write `result` atomically. Raises InputError if the file cannot be written."""
    write_text(path, json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def summary_table(result: dict[str, Any]) -> "Table":
    """Table for the command line: one line a class and one over all, mean ± standard deviation."""
    from rich.box import SIMPLE  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    unit = result["unit"]
    n_cases = len({row["case"] for row in result["cases"]})
    title = f"{n_cases} case{'' if n_cases == 1 else 's'}, mean ± standard deviation"
    table = Table(title=title, box=SIMPLE, padding=0)  # a line fits into 80 characters
    table.add_column("Class", overflow="fold")
    headings = ("Dice (%)", "Jaccard (%)", f"95HD ({unit})", f"ASD ({unit})", "Missed", "Invented")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for value, summary in result["per_class"].items():
        table.add_row(escape(summary.get("class_name", value)), *_cells(summary, summary))
    if len(result["per_class"]) > 1:
        table.add_section()
        table.add_row("all", *_cells(result["mean"], result))
    if result["not_predicted"]:
        table.caption = f"Labels without a prediction, left out: {result['not_predicted']}"
    return table


def _cells(mean: dict[str, Any], summary: dict[str, Any]) -> list[str]:
    """Metrics and counts of one line of the table; Dice and Jaccard in %."""
    cells = []
    for metric in METRICS:
        factor = 100 if metric in ("dice", "jaccard") else 1
        numbers = (mean[metric], summary["std"][metric])
        known = [f"{factor * number:.2f}" for number in numbers if number is not None]
        cells.append(" ± ".join(known) or "-")
    return [*cells, str(summary["missed"]), str(summary["invented"])]


def _measure(
    prediction_file: Path,
    label_file: Path,
    unit: str,
    names: dict[int, str],
    ignore: int | None,
) -> list[Row]:
    """Rows of one case, for the classes that one of the two files holds."""
    prediction, label = read_label(prediction_file), read_label(label_file)
    check_same_grid(prediction, label, prediction_file, label_file)
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
    return metrics_per_class(prediction.array, label.array, sorted(present), spacing, ignore)


def _classes_in(label: NDArray[np.integer[Any]], ignore: int | None) -> set[int]:
    return {int(value) for value in np.unique(label)} - {BACKGROUND, ignore}


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean of each metric over rows, its standard deviation over cases, and outcome counts.

    A row counts where it has a value: not where both masks are empty, and not for the distances
    of a missed or invented class. The standard deviation is of the population, over the mean of
    each case, and None below two cases.
    """
    mean: dict[str, float | None] = {}
    std: dict[str, float | None] = {}
    for metric in METRICS:
        of_case: dict[str, list[float]] = {}
        for row in rows:
            if row[metric] is not None:
                of_case.setdefault(row["case"], []).append(row[metric])
        case_means = [fmean(values) for values in of_case.values()]
        mean[metric] = fmean(chain(*of_case.values())) if of_case else None
        std[metric] = pstdev(case_means) if len(case_means) > 1 else None
    counts = {
        outcome.replace(" ", "_"): sum(row["outcome"] == outcome for row in rows)
        for outcome in (OK, MISSED, INVENTED, BOTH_EMPTY)
    }
    return {"mean": mean, "std": std, **counts}


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


def _label_folder(labels: Path) -> Path:
    if not labels.is_dir():
        raise InputError(f"{labels}: is not a folder; give the folder of labels or the data set")
    folders = (labels / name for name in ("labelsTr", "labels"))
    return next((folder for folder in folders if folder.is_dir()), labels)


def _label_files(folder: Path) -> dict[str, Path]:
    """Like _files_in, without the literature's files that hold an image only."""
    found = _files_in(folder)
    return {
        case: path
        for case, path in found.items()
        if path.name != LITERATURE or hdf5.has_label(path)
    }


def _files_in(folder: Path) -> dict[str, Path]:
    """Case name -> file, sorted by name."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        entry = volume_file(path)
        # Hidden files are leftovers, such as the "._CASE.nii.gz" that macOS puts into archives.
        if entry is None or path.name.startswith("."):
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
    Both conventions are read: nnU-Net's {name: value} and the Decathlon's {value: name}.
    """
    places = (label_folder / "dataset.json", label_folder.absolute().parent / "dataset.json")
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return {}, None
    try:
        declared = read_json(file)["labels"]
        pairs = [(int(a), b) if a.isdecimal() else (int(b), a) for a, b in declared.items()]
        ignore = next((value for value, name in pairs if name == "ignore"), None)
        names = {value: str(name) for value, name in pairs if value not in (BACKGROUND, ignore)}
    except (ValueError, KeyError, TypeError, AttributeError):
        names = {}
    if not names:
        raise InputError(
            f'{file}: has no usable list of classes; give it "labels" as in '
            '{"background": 0, "NAME": 1}, each name with one whole number'
        )
    return names, ignore
