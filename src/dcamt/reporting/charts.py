"""Charts of a comparison: metrics by method, and Dice against the number of labels."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from dcamt import escape
from dcamt.evaluation.metrics import METRICS, OVERLAPS
from dcamt.records.results import ResultRow
from dcamt.records.scores import Metric
from dcamt.reporting.style import INK, LINE, MUTED, WIDTH, new_figure, style
from dcamt.reporting.tables import best
from dcamt.reporting.values import heading, scale

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#20262e")
_MARKERS = ("o", "s", "^", "D")


def plot_metrics(rows: Sequence[ResultRow], unit: str) -> Figure:
    """Four panels, one a metric: each method's mean, its spread over seeds and every seed.

    Args:
        rows: Rows of one number of labels and, where there is one, the ceiling, which is drawn as
            a line. Each has ``runs``, whose ``mean`` is that of one seed.
        unit: Unit of the distances.
    """
    methods = [row for row in rows if not row["ceiling"]]
    figure = new_figure(WIDTH, 1.2 + 0.32 * len(methods))
    grid = figure.subplots(1, len(METRICS), sharey=True)
    for axes, metric in zip(grid, METRICS, strict=True):
        style(axes)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x", color="#eceff2", linewidth=0.8)
        for place, row in enumerate(methods):
            winner = row["mean"][metric] == best(methods, metric)
            _plot_row(axes, row, metric, place, winner and len(methods) > 1)
        for row in rows:
            mean = row["mean"][metric]
            if row["ceiling"] and mean is not None:
                axes.axvline(scale(metric) * mean, color=MUTED, linestyle="--", linewidth=1.1)
        better = "higher" if metric in OVERLAPS else "lower"
        axes.set_title(heading(metric, unit), loc="left", fontsize=9.5, color=INK)
        axes.set_xlabel(f"{better} is better", fontsize=8, color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.margins(x=0.12)
    grid[0].yaxis.set_major_locator(FixedLocator(list(range(len(methods)))))
    grid[0].set_yticklabels([escape.plot(row["name"]) for row in methods], fontsize=9, color=INK)
    grid[0].set_ylim(len(methods) - 0.5, -0.5)
    lines = [Line2D([], [], color=LINE, marker="o"), Line2D([], [], color="#d55e00", marker="o")]
    names = ["mean, spread and seeds", "best mean"]
    if len(methods) < len(rows):
        lines.append(Line2D([], [], color=MUTED, linestyle="--"))
        names.append(_ceiling_label(rows[-1]))
    figure.legend(lines, names, loc="outside lower center", ncols=3, fontsize=8.5, frameon=False)
    return figure


def _plot_row(axes: Axes, row: ResultRow, metric: Metric, place: int, winner: bool) -> None:
    mean, std = row["mean"][metric], row["std"][metric]
    if mean is None:
        return
    colour = "#d55e00" if winner else LINE
    seeds = [value for run in row["runs"] if (value := run["mean"][metric]) is not None]
    axes.scatter(
        [scale(metric) * value for value in seeds],
        [place] * len(seeds),
        s=14, color=colour, alpha=0.35, linewidths=0,
    )  # fmt: skip
    axes.errorbar(
        scale(metric) * mean,
        place,
        xerr=None if std is None else scale(metric) * std,
        fmt="o", markersize=6, color=colour, elinewidth=1.6, capsize=3,
    )  # fmt: skip


def plot_efficiency(rows: Sequence[ResultRow]) -> Figure:
    """Dice against the number of labels, a curve a method, with the ceiling as a line.

    Args:
        rows: Rows of a comparison; ``labeled`` is the number of labelled cases of a row.
    """
    figure = new_figure(8.0, 4.6)
    axes = figure.subplots()
    style(axes)
    counts = sorted({row["labeled"] for row in rows if not row["ceiling"]})
    names = list(dict.fromkeys(row["name"] for row in rows if not row["ceiling"]))
    # Beside each other where they would hide each other's spread.
    step = 0.05 / max(1, len(names) - 1)
    for number, name in enumerate(names):
        points = sorted(
            (row["labeled"], 100 * mean, 100 * (row["std"]["dice"] or 0.0))
            for row in rows
            if row["name"] == name and not row["ceiling"]
            if (mean := row["mean"]["dice"]) is not None
        )
        shift = 2 ** ((number - (len(names) - 1) / 2) * step)
        axes.errorbar(
            [labeled * shift for labeled, _, _ in points],
            [mean for _, mean, _ in points],
            yerr=[std for _, _, std in points],
            label=escape.plot(name),
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number // len(_COLOURS) % len(_MARKERS)],
            linewidth=1.6, markersize=5, elinewidth=1.1, capsize=2.5,
        )  # fmt: skip
    for row in rows:
        mean = row["mean"]["dice"]
        if row["ceiling"] and mean is not None:
            axes.axhline(
                100 * mean,
                label=_ceiling_label(row),
                color=MUTED, linestyle="--", linewidth=1.3,
            )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xlim(counts[0] / math.sqrt(2), counts[-1] * math.sqrt(2))
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(count) for count in counts])
    axes.set_xlabel("labelled cases", fontsize=9, color=MUTED)
    axes.set_title("Dice (%)", loc="left", fontsize=9.5, color=INK)
    figure.legend(loc="outside right upper", fontsize=8.5, frameon=False)
    return figure


def _ceiling_label(row: ResultRow) -> str:
    return escape.plot(f"{row['name']}, all {row['labeled']} labels")
