"""A run folder as it lies on disk, read for those who show it."""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, with_config

# Pydantic cannot read typing's TypedDict before Python 3.12.
from typing_extensions import TypedDict

from dcamt.data.formats import OUTPUT_FORMATS
from dcamt.errors import InputError
from dcamt.files import read_json, read_text
from dcamt.plain_yaml import load_yaml
from dcamt.records.check import checked
from dcamt.records.scores import Scores, read_scores

_MORE = ConfigDict(extra="allow", strict=True)


class _ShownPlan(TypedDict, total=False):
    classes: list[str]
    ignore: int | None


class _ShownMethod(TypedDict, total=False):
    name: str


@with_config(_MORE)
class _ShownConfig(TypedDict, total=False):
    """What is shown of config.yaml; `dcamt.config` knows it all."""

    dataset: str | None
    plan: _ShownPlan | None
    method: _ShownMethod | None
    predict: dict[str, Any] | None


@with_config(_MORE)
class DataRecord(TypedDict):
    """data.json: what the data set said of itself when the run began."""

    name: str
    licence: str


SplitPart = Literal["labeled", "unlabeled", "val", "test"]


@with_config(ConfigDict(extra="forbid", strict=True))
class SplitRecord(TypedDict):
    """split.json: the names of the cases of each part."""

    labeled: list[str]
    unlabeled: list[str]
    val: list[str]
    test: NotRequired[list[str]]


_CONFIG = TypeAdapter(_ShownConfig)
_DATA = TypeAdapter(DataRecord)
_SPLIT = TypeAdapter(SplitRecord)


@dataclass(frozen=True)
class FinishedRun:
    """What a run folder holds.

    `data` and `scores` are the contents of data.json and validation.json, None without one.
    """

    folder: Path
    config: Mapping[str, Any]
    split: SplitRecord
    versions: dict[str, str]
    log: dict[str, NDArray[np.float64]]
    scores: Scores | None
    data: DataRecord | None


def read_run(run: Path) -> FinishedRun:
    """Read a run folder; InputError if it is none, or one of its files is broken."""
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder; give the folder that training wrote")
    for name in ("config.yaml", "split.json", "versions.json", "log.csv"):
        if not (run / name).is_file():
            raise InputError(
                f"{run}: is not a run folder ({name} is missing); give the one that training wrote"
            )
    scores, data = run / "validation.json", run / "data.json"
    config = checked(load_yaml(run / "config.yaml"), _CONFIG, run / "config.yaml")
    return FinishedRun(
        folder=run,
        config=config,
        split=checked(read_json(run / "split.json"), _SPLIT, run / "split.json"),
        versions={key: str(value) for key, value in read_json(run / "versions.json").items()},
        log=read_log(run / "log.csv"),
        scores=read_scores(scores) if scores.is_file() else None,
        data=checked(read_json(data), _DATA, data) if data.is_file() else None,
    )


def read_log(path: Path) -> dict[str, NDArray[np.float64]]:
    """Columns of the log, each (rows,) float64 with NaN for empty cells.

    Rows without the number of their iteration are left out. Raises InputError for no log.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except csv.Error:
        raise InputError(f"{path}: cannot be read as CSV; restore the file") from None
    if not rows or "iteration" not in rows[0]:
        raise InputError(f"{path}: needs a column 'iteration' and a row; train the run first")
    columns = {
        name: np.array([_number(row[name]) for row in rows]) for name in rows[0] if name is not None
    }
    told = np.isfinite(columns["iteration"])
    if not told.any():
        raise InputError(f"{path}: no row has the number of its iteration; restore the file")
    return {name: values[told] for name, values in columns.items()}


def _number(cell: str | None) -> float:
    try:
        number = float(cell or "nan")
    except (ValueError, TypeError):  # text, or more cells than there are columns
        return math.nan
    return number if math.isfinite(number) else math.nan


def segmentation_in(folder: Path, case: str) -> Path:
    """The file of a case among segmentations or maps; .nii.gz if there is none in any format."""
    usual, *others = (folder / f"{case}.{ending}" for ending in OUTPUT_FORMATS)
    return next((path for path in others if path.is_file()), usual)
