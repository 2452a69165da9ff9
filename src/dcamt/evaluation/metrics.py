"""Dice, Jaccard, 95 % Hausdorff distance (95HD) and average surface distance (ASD).

The definitions are those the literature reports: MedPy's ``dc``, ``jc``, ``hd95`` and ``asd``.
Surface: foreground voxels with a background face neighbour; beyond the array all is background.
S(A, B): distances from each surface voxel of A to the nearest surface voxel of B.

    95HD = 95th percentile of S(prediction, reference) and S(reference, prediction) pooled
    ASD  = mean of S(prediction, reference): one direction only
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

METRICS = ("dice", "jaccard", "hd95", "asd")

OK, MISSED, INVENTED, BOTH_EMPTY = "ok", "missed", "invented", "both empty"


def segmentation_metrics(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing: Sequence[float],
) -> dict[str, float | None]:
    """Measure one class of one case.

    Args:
        prediction: boolean mask (X, Y, Z).
        reference: boolean mask (X, Y, Z).
        spacing: voxel size in mm along X, Y, Z, for distances in mm; (1, 1, 1) for voxels.

    Returns:
        ``dice`` and ``jaccard`` in 0..1, ``hd95`` and ``asd`` in the unit of `spacing`. All are
        None where both masks are empty; the distances are None where one is.

    Raises:
        ValueError: masks that are not boolean, 3D and equal in shape; a spacing not above 0.
    """
    _check(prediction, reference, spacing)
    box = _bounding_box(prediction | reference)
    if box is None:
        return dict.fromkeys(METRICS)
    prediction, reference = prediction[box], reference[box]

    n_prediction, n_reference = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    n_both = int(np.count_nonzero(prediction & reference))
    hd95, asd = None, None
    if n_prediction and n_reference:
        hd95, asd = _surface_metrics(_surface(prediction), _surface(reference), spacing)
    return {
        "dice": 2 * n_both / (n_prediction + n_reference),
        "jaccard": n_both / (n_prediction + n_reference - n_both),
        "hd95": hd95,
        "asd": asd,
    }


def metrics_per_class(
    prediction: NDArray[np.integer[Any]],
    reference: NDArray[np.integer[Any]],
    classes: Sequence[int],
    spacing: Sequence[float],
    ignore: int | None = None,
) -> list[dict[str, Any]]:
    """Measure every class of one case.

    Args:
        prediction: label map (X, Y, Z).
        reference: label map (X, Y, Z).
        classes: label values to measure, usually without the background.
        spacing: voxel size in mm along X, Y, Z, for distances in mm; (1, 1, 1) for voxels.
        ignore: voxels of this value in `reference` belong to no class in either label map.

    Returns:
        One row a class, in the order of `classes`: ``class``, the four metrics of
        `segmentation_metrics`, and ``outcome``, one of "ok", "missed" (only the reference has the
        class), "invented" (only the prediction has it) and "both empty".

    Raises:
        ValueError: as `segmentation_metrics`.
    """
    known = None if ignore is None else reference != ignore
    rows: list[dict[str, Any]] = []
    for value in classes:
        predicted, true = prediction == value, reference == value
        if known is not None:
            predicted, true = predicted & known, true & known
        metrics = segmentation_metrics(predicted, true, spacing)
        outcome = _outcome(bool(predicted.any()), bool(true.any()))
        rows.append({"class": int(value), **metrics, "outcome": outcome})
    return rows


def _outcome(in_prediction: bool, in_reference: bool) -> str:
    if in_prediction and in_reference:
        return OK
    if in_reference:
        return MISSED
    return INVENTED if in_prediction else BOTH_EMPTY


def _check(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Sequence[float]
) -> None:
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if mask.dtype != np.bool_ or mask.ndim != 3:
            raise ValueError(f"{name} must be a boolean 3D mask, not {mask.ndim}D {mask.dtype}")
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ")
    if len(spacing) != 3 or not all(size > 0 for size in spacing):
        raise ValueError(f"spacing must be three numbers above 0, not {tuple(spacing)}")


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """Smallest box around the foreground of `mask`; None where there is none.

    A box around both masks keeps every surface: what it cuts off is background of both.
    """
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        if not occupied.size:
            return None
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels of `mask` (X, Y, Z) with at least one of six face neighbours outside it."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1, 1:-1] & padded[2:, 1:-1, 1:-1]
    inside &= padded[1:-1, :-2, 1:-1]
    inside &= padded[1:-1, 2:, 1:-1]
    inside &= padded[1:-1, 1:-1, :-2]
    inside &= padded[1:-1, 1:-1, 2:]
    return mask & ~inside


def _surface_metrics(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Sequence[float]
) -> tuple[float, float]:
    """95HD and ASD between two surfaces (X, Y, Z), neither of them empty."""
    forward = _distances(prediction, reference, spacing)
    backward = _distances(reference, prediction, spacing)
    hd95 = np.percentile(np.concatenate((forward, backward)), 95)
    return float(hd95), float(forward.mean())


def _distances(
    origin: NDArray[np.bool_], target: NDArray[np.bool_], spacing: Sequence[float]
) -> NDArray[np.float64]:
    """Distance from each voxel of `origin` (N of them) to the nearest of `target`: (N,)."""
    distances = np.zeros(np.count_nonzero(origin))
    # Shared voxels are at distance 0: only the others need a search.
    apart = _positions(origin & ~target, spacing)
    if len(apart):
        tree = cKDTree(_positions(target, spacing), balanced_tree=False)  # faster on a grid
        distances[: len(apart)] = tree.query(apart)[0]
    return distances


def _positions(mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    """Positions of the voxels of `mask` (X, Y, Z) in the unit of `spacing`: (N, 3)."""
    voxels = np.unravel_index(np.flatnonzero(mask), mask.shape)  # faster than np.argwhere
    return np.stack(voxels, axis=1).astype(np.float64) * np.asarray(spacing, np.float64)
