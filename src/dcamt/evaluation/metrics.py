"""Overlap of two masks, and distances between their surfaces.

Surface: foreground voxels with a background face neighbour; beyond the array all is background.
S(A, B): distances from each surface voxel of A to the nearest surface voxel of B. P is the
prediction, R the reference, and whose definition it is stands in brackets:

    dice      2 |P and R| / (|P| + |R|)  [MedPy's dc]
    jaccard   |P and R| / |P or R|  [MedPy's jc]
    hd95      95th percentile of S(P, R) and S(R, P) pooled  [MedPy's hd95]
    asd       mean of S(P, R): one direction only  [MedPy's asd]
    assd      mean of S(P, R) and S(R, P) pooled  [MedPy's assd]
    hd        largest of S(P, R) and S(R, P)  [MedPy's hd]
    hd95_max  larger of the 95th percentiles of S(P, R) and of S(R, P)  [MONAI's]
    nsd       share of S(P, R) and S(R, P) pooled within the tolerance  [MONAI's surface Dice]
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from dcamt.data.grid import bounding_box
from dcamt.records.scores import Metric, Metrics, StructureScore, as_metrics

METRICS: tuple[Metric, ...] = ("dice", "jaccard", "hd95", "asd")
"""Measured unless others are asked for: what the literature on few labels reports."""
TITLES: dict[Metric, str] = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "hd95": "95HD",
    "asd": "ASD",
    "assd": "ASSD",
    "hd": "HD",
    "hd95_max": "95HD max",
    "nsd": "NSD",
}
"""Every metric there is, and how a table calls it."""
OVERLAPS: tuple[Metric, ...] = ("dice", "jaccard", "nsd")
"""Fractions, the larger the better; the others are distances."""
_ROUNDING = 1e-6  # headers hold voxel sizes in 32 bits

OK, MISSED, INVENTED, BOTH_EMPTY = "ok", "missed", "invented", "both empty"


def segmentation_metrics(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing: Sequence[float],
    metrics: Sequence[Metric] = METRICS,
    tolerance: float = 1.0,
) -> Metrics:
    """Measure one class of one case.

    Args:
        prediction: boolean mask (X, Y, Z).
        reference: boolean mask (X, Y, Z).
        spacing: voxel size in mm along X, Y, Z, for distances in mm; (1, 1, 1) for voxels.
        metrics: keys of TITLES.
        tolerance: distance up to which ``nsd`` takes two surfaces for one, in `spacing`'s unit.

    Returns:
        `metrics` in their order: overlaps in 0..1, distances in the unit of `spacing`. All are None
        where both masks are empty. Where one is, overlaps are 0 and distances None.

    Raises:
        ValueError: masks that are not boolean, 3D and equal in shape; a spacing not above 0.
    """
    _check(prediction, reference, spacing)
    # A box around both masks keeps every surface: what it cuts off is background of both.
    box = bounding_box(prediction | reference)
    if box is None:
        return as_metrics(dict.fromkeys(metrics))
    prediction, reference = prediction[box], reference[box]

    n_prediction, n_reference = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    n_both = int(np.count_nonzero(prediction & reference))
    found: Metrics = {
        "dice": 2 * n_both / (n_prediction + n_reference),
        "jaccard": n_both / (n_prediction + n_reference - n_both),
    }
    if n_prediction and n_reference:
        if not found.keys() >= {*metrics}:
            found |= _surface_metrics(prediction, reference, spacing, tolerance)
    else:
        found["nsd"] = 0.0
    return as_metrics({metric: found.get(metric) for metric in metrics})


def metrics_per_class(
    prediction: NDArray[np.integer[Any]],
    reference: NDArray[np.integer[Any]],
    classes: Sequence[int],
    spacing: Sequence[float],
    ignore: int | None = None,
    metrics: Sequence[Metric] = METRICS,
    tolerance: float = 1.0,
) -> list[StructureScore]:
    """Measure every class of one case.

    Args:
        prediction: label map (X, Y, Z).
        reference: label map (X, Y, Z).
        classes: label values to measure, usually without the background.
        spacing: voxel size in mm along X, Y, Z, for distances in mm; (1, 1, 1) for voxels.
        ignore: voxels of this value in `reference` belong to no class in either label map.
        metrics, tolerance: as for `segmentation_metrics`.

    Returns:
        One row a class, in the order of `classes`: ``class``, the metrics, and ``outcome``, one of
        "ok", "missed" (only the reference has the class), "invented" (only the prediction has it)
        and "both empty".

    Raises:
        ValueError: as `segmentation_metrics`.
    """
    known = None if ignore is None else reference != ignore
    rows: list[StructureScore] = []
    for value in classes:
        predicted, true = prediction == value, reference == value
        if known is not None:
            predicted, true = predicted & known, true & known
        measured = segmentation_metrics(predicted, true, spacing, metrics, tolerance)
        outcome = _outcome(bool(predicted.any()), bool(true.any()))
        rows.append({"class": int(value), **measured, "outcome": outcome})
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
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing: Sequence[float],
    tolerance: float,
) -> Metrics:
    """What the surfaces of two masks (X, Y, Z) tell, neither of which is empty."""
    surfaces = _surface(prediction), _surface(reference)
    forward = _distances(*surfaces, spacing)
    backward = _distances(*surfaces[::-1], spacing)
    both = np.concatenate((forward, backward))
    return {
        "hd95": float(np.percentile(both, 95)),
        "asd": float(forward.mean()),
        "assd": float(both.mean()),
        "hd": float(both.max()),
        "hd95_max": float(max(np.percentile(forward, 95), np.percentile(backward, 95))),
        "nsd": float((both <= tolerance * (1 + _ROUNDING)).mean()),
    }


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
