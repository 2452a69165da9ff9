"""What is kept of a segmentation's numbers, and of how they are turned into a confidence."""

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, FiniteFloat, NonNegativeInt, TypeAdapter, with_config

# Pydantic cannot read typing's TypedDict before Python 3.12.
from typing_extensions import TypedDict

from dcamt.files import read_json
from dcamt.records.check import broken, checked

CALIBRATION = "calibration.json"
"""In a run folder, and in an export of it."""
_STRICT = ConfigDict(extra="forbid", strict=True)
_Fraction = Annotated[FiniteFloat, Field(ge=0, le=1)]


class Found(TypedDict):
    """One class of one segmentation.

    volume_ml: in millilitres. expected_dice: 0 to 1, see `dcamt.inference.confidence`.
    """

    volume_ml: Annotated[FiniteFloat, Field(ge=0)]
    expected_dice: _Fraction


@with_config(_STRICT)
class CaseNumbers(TypedDict):
    """The file of one case: its classes but background, in the order of their label values."""

    classes: list[Found]


class ClassCalibration(TypedDict):
    """How the expected Dice of one class becomes a confidence; see `dcamt.evaluation.calibration`.

    exponent: ``confidence = expected_dice ** exponent``. look_below: confidence that one of ten
    validation cases is below. always: whether every validation label has the class. cases: how
    many it was fitted on. mean_absolute_error, rank_correlation: of the confidence against the true
    Dice, each case judged by a fit on the others; None where that is not defined.
    """

    exponent: Annotated[FiniteFloat, Field(gt=0)]
    look_below: _Fraction
    always: bool
    cases: NonNegativeInt
    mean_absolute_error: FiniteFloat | None
    rank_correlation: FiniteFloat | None


@with_config(_STRICT)
class Calibration(TypedDict):
    """calibration.json: one entry a class but background, None where too few cases have it."""

    classes: list[ClassCalibration | None]


_NUMBERS = TypeAdapter(CaseNumbers)
_CALIBRATION = TypeAdapter(Calibration)


def read_numbers(path: Path) -> CaseNumbers:
    """The numbers of one case; InputError if the file does not hold them."""
    return checked(read_json(path), _NUMBERS, path)


def read_calibration(run: Path, classes: int) -> Calibration | None:
    """The calibration of a run of so many ``classes`` but background, None without one.

    Raises InputError if the file is broken.
    """
    path = run / CALIBRATION
    if not path.is_file():
        return None
    found = checked(read_json(path), _CALIBRATION, path)
    if len(found["classes"]) != classes:
        raise broken(path)
    return found
