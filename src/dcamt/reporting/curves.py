"""Training curves of a run's report."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dcamt import escape
from dcamt.reporting.style import INK, LINE, MUTED, WIDTH, new_figure, style

_BINS = 400  # points a curve keeps, so that long runs stay small files
_PANEL = 2.25  # inches, as the space around each panel
_LEFT, _RIGHT, _ABOVE, _BELOW = 0.65, 0.15, 0.45, 0.5
_LAST = ("learning_rate", "val_dice")


def plot_curves(log: Mapping[str, NDArray[np.float64]]) -> Figure:
    """Small panels over iterations: every loss term, the learning rate, validation Dice.

    Args:
        log: Columns of `log.csv`, each (rows,) float64 with NaN where the cell is empty. All
            columns but `iteration` and `seconds` are drawn, those without a value are left out.
    """
    iteration = log["iteration"]
    names = _names(log)
    columns = 3
    rows = max(1, math.ceil(len(names) / columns))
    figure = new_figure(WIDTH, _PANEL * rows, fitted=False)
    wide = (WIDTH - _LEFT * columns - _RIGHT) / columns
    high = (_PANEL * rows - _ABOVE * rows - _BELOW) / rows
    figure.subplots_adjust(
        left=_LEFT / WIDTH, right=1 - _RIGHT / WIDTH, wspace=_LEFT / wide,
        top=1 - _ABOVE / _PANEL / rows, bottom=_BELOW / _PANEL / rows, hspace=_ABOVE / high,
    )  # fmt: skip
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


def curve_data(log: Mapping[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """The panels of `plot_curves` as numbers, for pages that draw them.

    Each has a title, x and y, the range of y that is shown, and for a loss "smooth" with x and y.
    """
    curves = []
    for name in _names(log):
        present = np.isfinite(log[name]) & np.isfinite(log["iteration"])
        x, y = log["iteration"][present], log[name][present] * (100 if name == "val_dice" else 1)
        if not len(x):
            continue
        kept_x, kept_y = _thin(x, y)
        low, high = _shown_range(y)
        low = 0.0 if name == "learning_rate" else low
        curve: dict[str, Any] = {"title": escape.printable(_title(name))}
        curve |= {"x": _short(kept_x), "y": _short(kept_y)}
        curve |= {"range": [low, high if high > low else low + 1]}
        if name not in _LAST:
            smooth_x, smooth_y = _smooth(x, y)
            curve["smooth"] = {"x": _short(smooth_x), "y": _short(smooth_y)}
        curves.append(curve)
    return curves


def _names(log: Mapping[str, NDArray[np.float64]]) -> list[str]:
    """The columns that have a curve, losses first."""
    names = [name for name in log if name not in ("iteration", "seconds", *_LAST)]
    names += [name for name in _LAST if name in log]
    return [name for name in names if np.isfinite(log[name]).any()]


def _title(name: str) -> str:
    return "validation Dice (%)" if name == "val_dice" else name.replace("_", " ")


def _shown_range(y: NDArray[np.float64]) -> tuple[float, float]:
    """The range of a curve; a few spikes must not flatten the rest of a long one."""
    low, high = np.percentile(y, [0.5, 99.5]) if len(y) >= 200 else (y.min(), y.max())
    margin = 0.05 * (high - low) or 0.05
    return float(low - margin), float(high + margin)


def _short(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _plot_panel(axes: Axes, name: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    style(axes)
    if name == "learning_rate":
        axes.plot(*_thin(x, y), color=LINE, linewidth=1.4)
        axes.set_ylim(bottom=0)
    elif name == "val_dice":
        axes.plot(x, 100 * y, color=LINE, linewidth=1.4, marker="o", markersize=3)
    else:
        axes.plot(*_thin(x, y), color=LINE, alpha=0.25, linewidth=0.8)
        x_smooth, y_smooth = _smooth(x, y)
        axes.plot(x_smooth, y_smooth, color=LINE, linewidth=1.6)
        if len(y) >= 200:
            axes.set_ylim(*_shown_range(y))
    if len(x) == 1:
        axes.plot(x, 100 * y if name == "val_dice" else y, color=LINE, marker="o", markersize=4)
    axes.set_title(escape.plot(_title(name)), loc="left", fontsize=9.5, color=INK)


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
