"""What a reader takes from a file."""

import re
from dataclasses import dataclass

from dcamt.data.grid import Array

NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True, eq=False)
class Forms:
    """The two transforms of a NIfTI header, each (4, 4) float64, voxel -> RAS+ mm, and its code.

    A code of 0 says that the header does not hold the transform; it is None then. spacing: voxel
    size (3,) in mm, which the header holds apart and some readers prefer to that of the sform.
    """

    sform: Array | None
    sform_code: int
    qform: Array | None
    qform_code: int
    spacing: Array


@dataclass(frozen=True, eq=False)
class Stored:
    """A volume as its file holds it.

    array: (X, Y, Z) or (X, Y, Z, channel), scaled as the header says.
    affine: (4, 4) float64, voxel -> RAS+ mm.
    forms: of NIfTI only.
    remarks: what a user should know of the file; sentences without its name.
    """

    array: Array
    affine: Array
    forms: Forms | None = None
    remarks: tuple[str, ...] = ()


def gist(remark: str) -> str:
    """A remark without its numbers, by which those of several files are told to be alike."""
    return NUMBER.sub("#", remark)


def numbers(remark: str) -> list[float]:
    """The numbers of a remark, by which the worst of several alike is told."""
    return [float(match[0]) for match in NUMBER.finditer(remark)]
