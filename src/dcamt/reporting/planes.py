"""Overlays of reference and segmentations on slices through the body."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from dcamt import escape
from dcamt.data.grid import Box, bounding_box
from dcamt.reporting.style import INK, MUTED, WIDTH, new_figure

REFERENCE = "#56b4e9"
PREDICTION = "#ff9f1c"
TINTS = ("#009e73", "#cc79a7", "#f0e442", "#d55e00", "#0072b2", "#56b4e9", "#e69f00", "#ffffff")

# Plane: voxel axis that is cut, and the letters at the left, right, top and bottom of the view.
PLANES = {
    "Axial": (2, ("R", "L", "A", "P")),
    "Coronal": (1, ("R", "L", "S", "I")),
    "Sagittal": (0, ("A", "P", "S", "I")),
}

_COLUMNS = 6  # of contours in a row


def plot_planes(
    image: NDArray[np.float32],
    reference: NDArray[np.int16],
    prediction: NDArray[np.int16],
    affine: NDArray[np.float64],
    values: Sequence[int],
) -> Figure:
    """One axial, coronal and sagittal slice with contours, at one physical scale.

    The view is radiological: the patient's right is on the left of axial and coronal slices,
    anterior on the left of sagittal ones. Each slice is the one where the reference (the
    prediction, if the reference is empty) has its largest area.

    Args:
        image: (X, Y, Z) intensities of one channel.
        reference: (X, Y, Z) label values.
        prediction: (X, Y, Z) label values.
        affine: (4, 4) voxel index -> RAS+ mm, of all three arrays.
        values: Label values of the foreground classes.
    """
    (image, reference, prediction), spacing = _to_body([image, reference, prediction], affine)
    in_reference, in_prediction = np.isin(reference, values), np.isin(prediction, values)
    shown = in_reference if in_reference.any() else in_prediction
    box = view_box(in_reference | in_prediction, spacing)
    window = _window(image[box])
    widths, heights = _sides(box, spacing)
    height = float(np.clip(WIDTH * max(heights) / sum(widths), 1.6, 6.5))
    figure = new_figure(WIDTH, height + 0.35)
    grid = figure.subplots(1, 3, width_ratios=widths)
    tints = values if len(values) > 1 else ()
    for axes, (name, (axis, letters)), high in zip(grid, PLANES.items(), heights, strict=True):
        index = _largest_slice(shown, axis)
        views = [_view(array, axis, index, box) for array in (image, reference, prediction)]
        step = [float(mm) for mm in np.delete(spacing, axis)]
        _plot_plane(axes, views, step, window, values, tints)
        # Equal limits for all three, so that a millimetre has the same length in each of them.
        axes.set_ylim(high - max(heights), high)
        _letter_sides(axes, letters, high / max(heights))
        axes.set_title(f"{name}, slice {index + 1} of {shown.shape[axis]}", fontsize=9, color=MUTED)
    return figure


def plot_contours(
    image: NDArray[np.float32],
    reference: NDArray[np.int16],
    predictions: Mapping[str, NDArray[np.int16]],
    affine: NDArray[np.float64],
    values: Sequence[int],
) -> Figure:
    """The same axial, coronal and sagittal slice with every prediction's contours beside it.

    One column a prediction, the reference in each of them; views, slices and scale are those of
    `plot_planes`.

    Args:
        image: (X, Y, Z) intensities of one channel.
        reference: (X, Y, Z) label values.
        predictions: Title of each column -> (X, Y, Z) label values.
        affine: (4, 4) voxel index -> RAS+ mm, of all arrays.
        values: Label values of the foreground classes.
    """
    arrays, spacing = _to_body([image, reference, *predictions.values()], affine)
    image, reference, *found = arrays
    masks = [np.isin(array, values) for array in (reference, *found)]
    shown = masks[0] if masks[0].any() else np.logical_or.reduce(masks)
    box = view_box(np.logical_or.reduce(masks), spacing)
    window = _window(image[box])
    widths, heights = _sides(box, spacing)
    columns = min(len(found), _COLUMNS)
    blocks = math.ceil(len(found) / columns)
    column = min(WIDTH / columns, 2.4)  # inches
    height = blocks * (column * sum(heights) / max(widths) + 0.3)
    figure = new_figure(column * columns, height + 0.35)
    grid = figure.subplots(3 * blocks, columns, squeeze=False, height_ratios=heights * blocks)
    tints = values if len(values) > 1 else ()
    for number in range(blocks * columns):
        block, place = divmod(number, columns)
        for row, (axis, _) in enumerate(PLANES.values()):
            axes = grid[3 * block + row, place]
            if number >= len(found):
                axes.remove()
                continue
            index = _largest_slice(shown, axis)
            views = [_view(array, axis, index, box) for array in (image, reference, found[number])]
            step = [float(mm) for mm in np.delete(spacing, axis)]
            _plot_plane(axes, views, step, window, values, tints)
            # Equal limits in every panel, so that a millimetre has the same length in each.
            spare = (max(widths) - widths[row]) / 2
            axes.set_xlim(-spare, max(widths) - spare)
            if row == 0:
                title = escape.plot(list(predictions)[number])
                axes.set_title(title, fontsize=9, color=INK)
    lines = [Line2D([], [], color=REFERENCE, linewidth=1.8)]
    lines += [Line2D([], [], color=PREDICTION, linewidth=1.6, linestyle=(0, (3.0, 1.6)))]
    figure.legend(
        lines, ["reference", "segmentation"], loc="outside lower center", ncols=2, fontsize=8.5,
        frameon=False,
    )  # fmt: skip
    return figure


def _to_body(
    arrays: Sequence[NDArray[Any]], affine: NDArray[np.float64]
) -> tuple[list[NDArray[Any]], NDArray[np.float64]]:
    """Arrays (X, Y, Z) turned to the nearest RAS axes, and their voxel size in mm, (3,)."""
    orientation = nib.orientations.io_orientation(affine)
    spacing = np.empty(3)
    spacing[orientation[:, 0].astype(int)] = np.linalg.norm(affine[:3, :3], axis=0)
    return [nib.orientations.apply_orientation(array, orientation) for array in arrays], spacing


def oblique_angle(affine: NDArray[np.float64]) -> float:
    """Largest angle in degrees between a voxel axis and the nearest body axis."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.degrees(np.arccos(np.clip(np.abs(directions).max(axis=0).min(), 0.0, 1.0))))


def _plot_plane(
    axes: Axes,
    views: Sequence[NDArray[Any]],
    step: Sequence[float],
    window: tuple[float, float],
    values: Sequence[int],
    tints: Sequence[int],
) -> None:
    image, reference, prediction = views
    rows, columns = image.shape
    extent = (0.0, columns * step[0], 0.0, rows * step[1])  # mm
    axes.imshow(
        image,
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        origin="lower",
        extent=extent,
        aspect="equal",
        interpolation="bilinear",
    )
    # Contours cut the corners of pixels: repeating long ones keeps the cut as short as the short
    # side. One background pixel all round closes the contours of structures at the border.
    fine = [max(1, round(mm / min(step))) for mm in step]
    x = (np.arange(-1, columns * fine[0] + 1) + 0.5) * step[0] / fine[0]
    y = (np.arange(-1, rows * fine[1] + 1) + 0.5) * step[1] / fine[1]
    for number, value in enumerate(values):
        in_reference, in_prediction = (
            np.pad((labels == value).repeat(fine[1], 0).repeat(fine[0], 1), 1).astype(float)
            for labels in (reference, prediction)
        )
        if value in tints and in_reference.any():
            tint = TINTS[number % len(TINTS)]
            axes.contourf(x, y, in_reference, levels=[0.5, 1.5], colors=[tint], alpha=0.22)
        if in_reference.any():
            axes.contour(x, y, in_reference, levels=[0.5], colors=[REFERENCE], linewidths=1.8)
        if in_prediction.any():
            dashes = [(0, (3.0, 1.6))]
            axes.contour(
                x,
                y,
                in_prediction,
                levels=[0.5],
                colors=[PREDICTION],
                linewidths=1.6,
                linestyles=dashes,
            )
    axes.set_xlim(extent[0], extent[1])
    axes.set_axis_off()


def _letter_sides(axes: Axes, letters: Sequence[str], filled: float) -> None:
    """Write the body directions inside the slice: the upper `filled` part of the panel."""
    bottom, top = 1 - filled, 1.0
    left, right, upper, lower = letters
    places = (
        (0.02, 1 - filled / 2, left, "left", "center"),
        (0.98, 1 - filled / 2, right, "right", "center"),
        (0.5, top - 0.02, upper, "center", "top"),
        (0.5, bottom + 0.02, lower, "center", "bottom"),
    )
    for x, y, letter, horizontal, vertical in places:
        axes.text(
            x,
            y,
            letter,
            transform=axes.transAxes,
            ha=horizontal,
            va=vertical,
            fontsize=10,
            fontweight="bold",
            color="white",
            path_effects=[withStroke(linewidth=2.2, foreground="black")],
        )


def _view(array: NDArray[Any], axis: int, index: int, box: Box) -> NDArray[Any]:
    """Slice of a RAS array as (rows, columns), rows upwards; columns run to the patient's left,
    in sagittal slices to the back."""
    cut: list[int | slice] = list(box)
    cut[axis] = index
    return np.asarray(array[tuple(cut)].T[:, ::-1])


def _largest_slice(mask: NDArray[np.bool_], axis: int) -> int:
    """Index of the slice across `axis` with most voxels; the middle one if there are none."""
    others = tuple(other for other in range(3) if other != axis)
    area = mask.sum(axis=others)
    return int(area.argmax()) if area.any() else mask.shape[axis] // 2


def _sides(box: Box, spacing: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Widths and heights (mm) of the three planes' views of ``box``."""
    x, y, z = ((part.stop - part.start) * mm for part, mm in zip(box, spacing, strict=True))
    widths = [y if axis == 0 else x for axis, _ in PLANES.values()]
    heights = [y if axis == 2 else z for axis, _ in PLANES.values()]
    return widths, heights


def view_box(mask: NDArray[np.bool_], spacing: NDArray[np.float64]) -> Box:
    """Box around the structures: a margin of a quarter of their size and at least 8 mm, and no
    side shorter than 60 % of the longest, so that flat structures keep some surroundings."""
    box = bounding_box(mask)
    if box is None:
        x, y, z = mask.shape
        return slice(0, x), slice(0, y), slice(0, z)
    first, last = np.array([(part.start, part.stop) for part in box]).T
    size = (last - first) * spacing
    side = size + 2 * np.maximum(8.0, size / 4)
    side = np.maximum(side, 0.6 * side.max())
    margin = np.ceil((side - size) / (2 * spacing)).astype(int)
    start = np.maximum(first - margin, 0)
    stop = np.minimum(last + margin, mask.shape)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    return x, y, z


def _window(image: NDArray[np.float32]) -> tuple[float, float]:
    """1st and 99th percentile of the intensities that are shown."""
    low, high = np.nanpercentile(image, [1, 99])
    return float(low), float(high if high > low else low + 1)
