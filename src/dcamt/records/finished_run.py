"""A run folder as it lies on disk, read for those who show it."""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from dcamt.config import load_yaml
from dcamt.data.volume import LARGEST_LABEL
from dcamt.errors import InputError
from dcamt.evaluation.metrics import TITLES
from dcamt.files import read_json, read_text

_LABEL = Annotated[int, Field(ge=0, le=LARGEST_LABEL)]
_Metric = FiniteFloat | None


class _Part(BaseModel):
    """What a report needs of a file; more may be there."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Metrics(_Part):
    """The metrics that were asked for."""

    dice: _Metric = None
    jaccard: _Metric = None
    hd95: _Metric = None
    asd: _Metric = None
    assd: _Metric = None
    hd: _Metric = None
    hd95_max: _Metric = None
    nsd: _Metric = None

    @property
    def metrics(self) -> frozenset[str]:
        return frozenset(self.model_fields_set & TITLES.keys())


class _CaseScore(_Metrics):
    case: str
    label: _LABEL = Field(alias="class")
    outcome: str


class _ClassScore(_Metrics):
    std: _Metrics
    missed: NonNegativeInt
    invented: NonNegativeInt


class _Scores(_Part):
    """validation.json, as `dcamt.evaluation.evaluate` writes it."""

    cases: list[_CaseScore]
    mean: _Metrics
    std: _Metrics
    per_class: dict[Annotated[str, Field(pattern=r"^[0-9]{1,5}$")], _ClassScore]
    missed: NonNegativeInt
    invented: NonNegativeInt
    unit: str
    tolerance: FiniteFloat | None = None

    @model_validator(mode="after")
    def _same_metrics(self) -> "_Scores":
        classes = self.per_class.values()
        parts = [self.mean, self.std, *self.cases, *classes, *(found.std for found in classes)]
        if not self.mean.metrics or len({part.metrics for part in parts}) > 1:
            raise ValueError("every part needs the same metrics")
        if "nsd" in self.mean.metrics and self.tolerance is None:
            raise ValueError("nsd needs its tolerance")
        return self


class _ShownPlan(_Part):
    classes: list[str] = []
    ignore: int | None = None


class _ShownMethod(_Part):
    name: str = ""


class _ShownConfig(_Part):
    """What is shown of config.yaml; `dcamt.config` knows it all."""

    dataset: str | None = None
    plan: _ShownPlan | None = None
    method: _ShownMethod | None = None
    predict: dict[str, Any] | None = None


class _ShownData(_Part):
    """data.json: what the data set said of itself when the run began."""

    name: str
    licence: str


class _ShownSplit(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    labeled: list[str]
    unlabeled: list[str]
    val: list[str]
    test: list[str] = []


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    `data` and `scores` are the contents of data.json and validation.json, None without one.
    """

    folder: Path
    config: dict[str, Any]
    split: dict[str, list[str]]
    versions: dict[str, str]
    log: dict[str, NDArray[np.float64]]
    scores: dict[str, Any] | None
    data: dict[str, str] | None


def read_run(run: Path) -> Run:
    """Read a run folder; InputError if it is none, or one of its files is broken."""
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder; give the folder that training wrote")
    for name in ("config.yaml", "split.json", "versions.json", "log.csv"):
        if not (run / name).is_file():
            raise InputError(
                f"{run}: is not a run folder ({name} is missing); give the one that training wrote"
            )
    scores, data = run / "validation.json", run / "data.json"
    return Run(
        folder=run,
        config=_checked(load_yaml(run / "config.yaml"), _ShownConfig, run / "config.yaml"),
        split=_checked(read_json(run / "split.json"), _ShownSplit, run / "split.json"),
        versions={key: str(value) for key, value in read_json(run / "versions.json").items()},
        log=_read_log(run / "log.csv"),
        scores=read_scores(scores) if scores.is_file() else None,
        data=_checked(read_json(data), _ShownData, data) if data.is_file() else None,
    )


def read_scores(path: Path, needed: Iterable[str] = ()) -> dict[str, Any]:
    """What `dcamt.evaluation.evaluate` wrote, with any metrics, but all that are ``needed``.

    InputError if that is not what it wrote.
    """
    scores = _checked(read_json(path), _Scores, path)
    missing = [metric for metric in needed if metric not in scores["mean"]]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}; remove it and make it anew")
    return scores


def _checked(content: dict[str, Any], model: type[BaseModel], path: Path) -> dict[str, Any]:
    try:
        model.model_validate(content)
    except ValidationError:
        raise InputError(
            f"{path}: lacks keys or holds values that dcamt does not write there; restore it, or "
            "remove it and make it anew"
        ) from None
    return content


def _read_log(path: Path) -> dict[str, NDArray[np.float64]]:
    """Columns of the log, each (rows,) float64 with NaN for empty cells."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except csv.Error:
        raise InputError(f"{path}: cannot be read as CSV; restore the file") from None
    if not rows or "iteration" not in rows[0]:
        raise InputError(f"{path}: needs a column 'iteration' and a row; train the run first")
    return {
        name: np.array([_number(row[name]) for row in rows]) for name in rows[0] if name is not None
    }


def _number(cell: str | None) -> float:
    try:
        number = float(cell or "nan")
    except (ValueError, TypeError):  # text, or more cells than there are columns
        return math.nan
    return number if math.isfinite(number) else math.nan


def segmentation_in(folder: Path, case: str) -> Path:
    """The file of a case among a run's segmentations: NRRD where NIfTI cannot hold its place."""
    nrrd = folder / f"{case}.nrrd"
    return nrrd if nrrd.is_file() else folder / f"{case}.nii.gz"
