"""What a reader takes from a file."""

from dataclasses import dataclass

from dcamt.data.formats.guard import Array


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
