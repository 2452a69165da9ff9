"""Training curves of a run's report."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dcamt import escape
from dcamt.reporting.style import INK, LINE, MUTED, WIDTH, new_figure, style

_BINS = 400  # points a curve keeps, so that long runs stay small files


def plot_curves(log: Mapping[str, NDArray[np.float64]]) -> Figure:
    """Small panels over iterations: every loss term, the learning rate, validation Dice.

    Args:
        log: Columns of `log.csv`, each (rows,) float64 with NaN where the cell is empty. All
            columns but `iteration` and `seconds` are drawn, those without a value are left out.
    """
    iteration = log["iteration"]
    last = ("learning_rate", "val_dice")
    names = [name for name in log if name not in ("iteration", "seconds", *last)]
    names += [name for name in last if name in log]
    names = [name for name in names if np.isfinite(log[name]).any()]

    columns = 3
    rows = max(1, math.ceil(len(names) / columns))
    figure = new_figure(WIDTH, 2.25 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axes in grid[len(names) :]:
        axes.remove()
    for number, (axes, name) in enumerate(zip(grid, names, strict=False)):
        present = np.isfinite(log[name]) & np.isfinite(iteration)
        _plot_panel(axes, name, iteration[present], log[name][present])
        if number + columns >= len(names):
            axes.set_xlabel("iteration", fontsize=8.5, color=MUTED)
            axes.tick_params(labelbottom=True)
    return figure


def _plot_panel(axes: Axes, name: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    style(axes)
    if name == "learning_rate":
        title = "learning rate"
        axes.plot(*_thin(x, y), color=LINE, linewidth=1.4)
        axes.set_ylim(bottom=0)
    elif name == "val_dice":
        title = "validation Dice (%)"
        axes.plot(x, 100 * y, color=LINE, linewidth=1.4, marker="o", markersize=3)
    else:
        title = name.replace("_", " ")
        axes.plot(*_thin(x, y), color=LINE, alpha=0.25, linewidth=0.8)
        x_smooth, y_smooth = _smooth(x, y)
        axes.plot(x_smooth, y_smooth, color=LINE, linewidth=1.6)
        if len(y) >= 200:  # a few spikes must not flatten the rest of the curve
            low, high = np.percentile(y, [0.5, 99.5])
            margin = 0.05 * (high - low) or 0.05
            axes.set_ylim(low - margin, high + margin)
    if len(x) == 1:
        axes.plot(x, 100 * y if name == "val_dice" else y, color=LINE, marker="o", markersize=4)
    axes.set_title(escape.plot(title), loc="left", fontsize=9.5, color=INK)


def _smooth(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centred moving mean over 2 % of the points, where the window fits; short logs stay as is."""
    half = len(y) // 100
    total = np.concatenate([[0.0], np.cumsum(y)])
    centre = np.unique(np.linspace(half, len(y) - 1 - half, _BINS).round().astype(int))
    return x[centre], (total[centre + half + 1] - total[centre - half]) / (2 * half + 1)


def _thin(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most two points a bin, its smallest and its largest value, so that spikes stay visible."""
    if len(y) <= 2 * _BINS:
        return x, y
    kept: list[int] = []
    for part in np.array_split(np.arange(len(y)), _BINS):
        kept += sorted({int(part[y[part].argmin()]), int(part[y[part].argmax()])})
    return x[kept], y[kept]
