"""summary.csv and summary.json of ``dcamt predict``: which segmentations to look at first."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from rich.console import Console

from dcamt.errors import InputError
from dcamt.escape import csv_cell, csv_text
from dcamt.files import read_json, read_text, write_json, write_text
from dcamt.inference.predict import SUMMARY
from dcamt.records.run_folder import is_federation
from dcamt.records.summary import (
    CALIBRATION,
    Calibration,
    ClassCalibration,
    Found,
    read_calibration,
    read_numbers,
)
from dcamt.wording import number_of

CSV, JSON = f"{SUMMARY}.csv", f"{SUMMARY}.json"
LOOK = "look"
RULE = (
    f"flag is '{LOOK}' where the confidence is lower than in nine of ten validation cases, or "
    "where nothing is found of a structure that every validation case has"
)
_COLUMNS = ("case", "class", "class_name", "volume_ml", "confidence", "flag")
_FEW = 10
"""Validation cases below which a confidence rests on too few to be trusted."""

Row = TypedDict(
    "Row",
    {
        "case": str,
        "class": int,
        "class_name": str,
        "volume_ml": float,
        "confidence": float | None,
        "flag": str,
    },
)


def summary_of(
    out: Path, ending: str, classes: Sequence[str], run: Path, weights: str, console: Console
) -> Callable[[], None]:
    """What writes the summary of the folder ``out`` and tells of it, as often as it is called.

    InputError if the calibration of ``run`` is broken.
    """
    calibration = read_calibration(run, len(classes) - 1)
    calibration, note = _of_weights(calibration, run, weights)
    told: set[str] = set()

    def sum_up() -> None:
        rows = write_summary(out, ending, classes, calibration)
        if not rows:
            return
        if note and note not in told:
            told.add(note)
            console.print(note)
        cases = {row["case"] for row in rows}
        flagged = {row["case"] for row in rows if row["flag"]}
        count = number_of(len(cases), "case")
        console.print(f"{out / CSV}: {len(flagged)} of {count} to look at, first in the list")

    return sum_up


def _of_weights(
    found: Calibration | None, run: Path, weights: str
) -> tuple[Calibration | None, str]:
    """The calibration if it may be used, and what to tell of it."""
    if weights != "last":
        return None, f"{CSV} has no confidence: it is known of the last weights only"
    if found is None or not any(found["classes"]):
        why = f"{CSV} has no confidence: {run} has no {CALIBRATION} of two validation cases or more"
        if is_federation(run):
            return None, why
        return None, (
            f"{why}; `dcamt train DATASET --out RUN --resume` adds it to a finished run that has "
            "them"
        )
    fewest = min(one["cases"] for one in found["classes"] if one)
    if fewest >= _FEW:
        return found, ""
    return found, (
        f"{CSV}: the confidence rests on {number_of(fewest, 'validation case')} alone; take it "
        "for an order, not for a Dice"
    )


def refuse_other_summary(out: Path) -> None:
    """InputError if a file in ``out`` that would be replaced is not of `dcamt predict`."""
    table, record = out / CSV, out / JSON
    if os.path.lexists(table) and read_text(table).partition("\n")[0] != ",".join(_COLUMNS):
        raise _not_ours(table)
    if os.path.lexists(record) and read_json(record).get("rule") != RULE:
        raise _not_ours(record)


def _not_ours(path: Path) -> InputError:
    return InputError(f"{path}: is not of `dcamt predict`; rename it, or choose another --out")


def write_summary(
    out: Path, ending: str, classes: Sequence[str], calibration: Calibration | None
) -> list[Row]:
    """Sum up every segmentation in the folder ``out``; the ones that may have failed come first.

    Made anew from the numbers of each case, which are written before its segmentation (CASE and
    ``ending``), so that it is whole whenever a killed ``predict`` went on. ``classes`` are the
    names of the plan, background first.
    """
    cases = {
        path.name.removesuffix(".json"): read_numbers(path)["classes"]
        for path in sorted((out / SUMMARY).glob("*.json"))
        if (out / f"{path.name.removesuffix('.json')}{ending}").exists()
    }
    if not cases:
        return []
    fits = calibration["classes"] if calibration else [None] * (len(classes) - 1)
    order = sorted(cases, key=lambda case: _margin(cases[case], fits))
    rows = [
        _row(case, k, classes[k], found, fits[k - 1])
        for case in order
        for k, found in enumerate(cases[case], 1)
    ]
    write_text(out / CSV, _csv_text(rows))
    write_json({"rule": RULE, "calibration": calibration, "rows": rows}, out / JSON)
    return rows


def _row(case: str, k: int, name: str, found: Found, fitted: ClassCalibration | None) -> Row:
    confidence = _confidence(found, fitted)
    return {
        "case": case,
        "class": k,
        "class_name": name,
        "volume_ml": round(found["volume_ml"], 4),
        "confidence": None if confidence is None else round(confidence, 4),
        "flag": LOOK if _to_look_at(found, fitted) else "",
    }


def _confidence(found: Found, fitted: ClassCalibration | None) -> float | None:
    """The Dice to expect; None where nothing is found, or nothing is known of the class."""
    if fitted is None or not found["volume_ml"]:
        return None
    return found["expected_dice"] ** fitted["exponent"]


def _to_look_at(found: Found, fitted: ClassCalibration | None) -> bool:
    if not found["volume_ml"]:
        return fitted is None or fitted["always"]
    confidence = _confidence(found, fitted)
    return fitted is not None and confidence is not None and confidence < fitted["look_below"]


def _margin(found: Sequence[Found], fits: Sequence[ClassCalibration | None]) -> float:
    """How far the worst class of a case lies above what is flagged; below 0 if it is flagged."""
    margins = [1.0]
    for of_class, fitted in zip(found, fits, strict=True):
        confidence = _confidence(of_class, fitted)
        if confidence is not None and fitted is not None:
            margins.append(confidence - fitted["look_below"])
        elif of_class["volume_ml"]:
            margins.append(of_class["expected_dice"])
        elif _to_look_at(of_class, fitted):
            margins.append(-1.0)
    return min(margins)


def _csv_text(rows: Sequence[Row]) -> str:
    table: list[Sequence[object]] = [_COLUMNS]
    for row in rows:
        names = csv_cell(row["case"]), row["class"], csv_cell(row["class_name"])
        confidence = "" if row["confidence"] is None else row["confidence"]
        table.append([*names, row["volume_ml"], confidence, row["flag"]])
    return csv_text(table)
