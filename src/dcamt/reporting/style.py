"""What all figures share: colours, the look of their axes, and the way into an HTML page.

Everything goes through `Figure` objects of its own, so that nothing here depends on, or changes,
the global state of pyplot. Colours are from the colour-blind-safe palette of Okabe and Ito.
"""

import base64
import io
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK = "#20262e"
MUTED = "#6b7480"
LINE = "#0072b2"

WIDTH = 11.0  # inches


def new_figure(width: float, height: float, fitted: bool = True) -> Figure:
    """An empty figure of ``width`` x ``height`` inches, apart from pyplot.

    If it is ``fitted``, the axes leave room for all text. This takes as long as drawing.
    """
    figure = Figure(
        figsize=(width, height), layout="constrained" if fitted else None, facecolor="white"
    )
    FigureCanvasAgg(figure)
    return figure


def style(axes: Axes) -> None:
    """The look that all plots share."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c5cbd3")
    axes.tick_params(labelsize=8, colors=MUTED, length=3, color="#c5cbd3")
    axes.grid(axis="y", color="#eceff2", linewidth=0.8)
    axes.set_axisbelow(True)
    steps = [1, 2, 2.5, 5, 10]
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=steps))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=steps))


def data_uri(figure: Figure, kind: Literal["svg", "png"]) -> str:
    """The figure as a `data:` address to put into an HTML image element."""
    buffer = io.BytesIO()
    # By the canvas: `Figure.savefig` draws everything twice. A fixed salt and no date: the same
    # run gives the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "dcamt"}):
        if kind == "svg":
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
        else:
            figure.set_dpi(110)
            FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    mime = "image/svg+xml" if kind == "svg" else "image/png"
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
