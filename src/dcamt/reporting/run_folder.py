"""A run folder as it lies on disk, read for those who show it."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcamt.config import load_yaml
from dcamt.data.dataset import read_json
from dcamt.errors import InputError
from dcamt.evaluation.metrics import METRICS


@dataclass(frozen=True)
class Run:
    """What a run folder holds. `scores` is the content of validation.json, None without one."""

    folder: Path
    config: dict[str, Any]
    split: dict[str, list[str]]
    versions: dict[str, str]
    log: dict[str, NDArray[np.float64]]
    scores: dict[str, Any] | None


def read_run(run: Path) -> Run:
    """Read a run folder; InputError if it is none, or one of its files is broken."""
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder; give the folder that training wrote")
    for name in ("config.yaml", "split.json", "versions.json", "log.csv"):
        if not (run / name).is_file():
            raise InputError(
                f"{run}: is not a run folder ({name} is missing); give the one that training wrote"
            )
    split = read_json(run / "split.json")
    scores = run / "validation.json"
    return Run(
        folder=run,
        config=load_yaml(run / "config.yaml"),
        split={part: list(names) for part, names in split.items()},
        versions={key: str(value) for key, value in read_json(run / "versions.json").items()},
        log=_read_log(run / "log.csv"),
        scores=_read_scores(scores) if scores.is_file() else None,
    )


def _read_scores(path: Path) -> dict[str, Any]:
    scores = read_json(path)
    missing = {"cases", "mean", "per_class", "missed", "invented", "unit"} - scores.keys()
    wanted = {"case", "class", "outcome", *METRICS}
    if missing or not all(
        isinstance(row, dict) and wanted <= row.keys() for row in scores["cases"]
    ):
        raise InputError(f"{path}: lacks keys that evaluation writes; evaluate the run again")
    return scores


def _read_log(path: Path) -> dict[str, NDArray[np.float64]]:
    """Columns of the log, each (rows,) float64 with NaN for empty cells."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error}); restore the file") from None
    if not rows or "iteration" not in rows[0]:
        raise InputError(f"{path}: needs a column 'iteration' and a row; train the run first")
    return {
        name: np.array([_number(row[name]) for row in rows]) for name in rows[0] if name is not None
    }


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan
