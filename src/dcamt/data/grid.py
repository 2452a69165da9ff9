"""Where the voxels of a volume lie: affines (voxel -> RAS+ mm), and units of length."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

Array = np.ndarray[Any, np.dtype[Any]]

Box = tuple[slice, slice, slice]
"""Part of (X, Y, Z) voxels."""

GRID_TOLERANCE = 0.05
"""Voxels by which two grids may differ at any corner and still count as the same.

Headers that store 0.7031 for 0.703125 mm differ by 0.02 voxels at the far corner of 512 slices;
a label drawn on another grid differs by far more.
"""
BLOCK = 32
"""Voxels along the first and the last axis that are copied at once from one order to another."""
UNITS = {
    "nanometre": (1e-6, ("nm", "nanometer")),
    "micron": (1e-3, ("um", "micron", "micrometer")),
    "millimetre": (1.0, ("mm", "millimeter")),
    "centimetre": (10.0, ("cm", "centimeter")),
    "metre": (1000.0, ("m", "meter")),
}
"""Name of a unit of length -> its millimetres, and how headers write it."""
NO_UNIT = ("", "?", "???", "unknown", "none", "pixel", "voxel")
"""What stands for a unit where none is known: sizes are mm then."""


def millimetres(units: Sequence[str]) -> tuple[list[float], tuple[str, ...]]:
    """The length in mm of each unit that a header names, and what a user should know of it."""
    factors, remarks = [], []
    for unit in units:
        # The letter of micro has two code points, and a byte of Latin-1 that is none in UTF-8.
        written = re.sub("[\u00b5\u03bc\ufffd]", "u", unit.strip().lower())
        written = written.replace("metre", "meter").removesuffix("s")
        name, factor = next(
            ((name, mm) for name, (mm, spelled) in UNITS.items() if written in spelled), ("", 1.0)
        )
        factors.append(factor)
        if factor != 1:
            remarks.append(f"the header's unit is the {name}; sizes were converted to mm")
        elif not name and written not in NO_UNIT:
            remarks.append("the header's unit is no known length; sizes are taken as mm")
    return factors, tuple(dict.fromkeys(remarks))


def is_usable(affine: Array) -> bool:
    """Whether an affine is finite and gives voxels a size and a volume."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and np.isfinite(spacing).all() and (spacing > 0).all()):
        return False
    return bool(abs(np.linalg.det(affine[:3, :3] / spacing)) >= 1e-6)


def is_nowhere(affine: Array) -> bool:
    """Whether voxels are 1 mm wide from the origin 0 on, as where a file holds no place at all."""
    return np.array_equal(np.abs(affine), np.eye(4))


def apart(first: Array, second: Array, shape: Sequence[int]) -> tuple[float, float]:
    """The largest distance of a corner of (X, Y, Z) voxels by two affines, in mm and in voxels.

    Voxels are counted along the axes of the first one.
    """
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape), (1,)))).T
    moved = ((second - first) @ corners)[:3]
    voxels = np.linalg.solve(first[:3, :3], moved)
    return float(np.linalg.norm(moved, axis=0).max()), float(np.abs(voxels).max())


def without_shear(affine: Array) -> Array:
    """The nearest affine with axes at right angles, of equal spacing and origin."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    straight = affine.copy()
    straight[:3, :3] = (left @ right) * spacing
    return straight


def is_sheared(affine: Array, shape: Sequence[int]) -> bool:
    """Whether the axes' deviation from right angles moves a corner by more than rounding does."""
    return apart(affine, without_shear(affine), shape)[1] > GRID_TOLERANCE


def shear_angle(affine: Array) -> float:
    """Degrees by which the axes deviate from right angles, at most."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    products = np.abs(np.triu(axes.T @ axes, 1))
    return float(np.degrees(np.arcsin(products.clip(max=1).max())))


def reorient(array: Array, axes: Array) -> Array:
    """Permute and flip the last three axes of (..., X, Y, Z); ``axes`` as nibabel has them."""
    rest = array.ndim - 3
    moved = np.moveaxis(array, range(rest), range(3, array.ndim))
    moved = np.asarray(orientations.apply_orientation(moved, axes))
    return np.moveaxis(moved, range(3, array.ndim), range(rest))


def in_c_order(array: Array, dtype: Any = None) -> Array:
    """A copy of (..., X, Y, Z) in C order, of another dtype if that is given.

    From Fortran order, which NIfTI has, block by block: both orders of a block fit into a
    processor's cache, so that large scans are copied three times as fast.
    """
    dtype = array.dtype if dtype is None else dtype
    if array.flags.c_contiguous:
        return array.astype(dtype)
    copy = np.empty(array.shape, dtype)
    for x in range(0, array.shape[-3], BLOCK):
        for z in range(0, array.shape[-1], BLOCK):
            part = (..., slice(x, x + BLOCK), slice(None), slice(z, z + BLOCK))
            copy[part] = array[part]
    return copy


def onto(affine: Array, shape: Sequence[int], target: Array) -> tuple[Array, Array]:
    """How to bring (X, Y, Z) voxels nearest to the axes of another affine, and their affine then.

    Returns the change of orientation (3, 2), as ``reorient`` takes it, and (4, 4).
    """
    axes = orientations.io_orientation(np.linalg.solve(target, affine))
    return axes, affine @ orientations.inv_ornt_aff(axes, tuple(shape))


def bounding_box(mask: NDArray[np.bool_]) -> Box | None:
    """The smallest box that holds all of ``mask`` (X, Y, Z); None where nothing is in it."""
    sides = []
    for others in ((1, 2), (0, 2), (0, 1)):
        occupied = np.flatnonzero(mask.any(axis=others))
        if not occupied.size:
            return None
        sides.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return sides[0], sides[1], sides[2]
