"""Names in every medium: what is shown is the name, and nothing of it is obeyed."""

import csv
import html
import io
import re

import numpy as np
import pytest
from markdown_it import MarkdownIt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dcamt import escape

NAMES = (
    "<script>alert(1)</script>", "a|b", "# x", "x #", "`c`", "![i](http://x)", "[l](javascript:x)",
    "__init__", "_x_", "a__b", "*b*", "~~s~~", "&amp;", "<!-- -->", "x\\", "end\\|", "{{x}}", "$x$",
    "$\\frac$", "a_b", "=1+1", "[red]r", "5 < 6 & 7", "Fälle 脳",
)  # fmt: skip
UNPRINTABLE = {
    "a\nb": r"a\nb",
    "\x1b[31mred": r"\x1b[31mred",
    "\u202eabc": r"\u202eabc",
    "\x9b1m": r"\x9b1m",
    "\udc80": r"\udc80",
}


@pytest.mark.parametrize("name", UNPRINTABLE)
def test_what_a_terminal_would_obey_is_spelt_out(name):
    assert escape.printable(name) == UNPRINTABLE[name]
    for write in (escape.markdown, escape.latex, escape.csv_cell, escape.plot):
        assert write(name).isprintable()


@pytest.mark.parametrize("name", [*NAMES, *UNPRINTABLE])
def test_markdown_shows_the_name_and_nothing_else(name):
    shown, text = escape.printable(name), escape.markdown(name)
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(
        f"# T {text}\n\n| a | b |\n|---|---|\n| {text} | z |\n\nIt is {text}, so.\n"
    )  # fmt: skip
    assert [html.unescape(cell) for cell in re.findall("<td>(.*)</td>", page)] == [shown, "z"]
    assert html.unescape(re.search("<h1>T (.*)</h1>", page)[1]) == shown
    assert html.unescape(re.search("<p>It is (.*), so.</p>", page)[1]) == shown
    assert len(re.findall("<(?!/)", page)) == 11  # heading, table, paragraph
    assert escape.plain(text) == shown


def test_ordinary_names_stay_as_they_are():
    for name in ("left_atrium", "dca-mt:paste=0", "p < 0.05", "Fälle 脳"):
        assert escape.markdown(name) == name
        assert escape.plot(name) == escape.csv_cell(name) == escape.from_csv_cell(name) == name


def test_latex_takes_no_order_from_a_name():
    assert escape.latex(r"50 % of a_b & {c} \d") == (
        r"50 \% of a\_b \& \{c\} \textbackslash{}d"
    )  # fmt: skip
    # A line's end followed by [...] or * would read them as its own options.
    assert escape.latex("[red]*") == "{[}red{]}{*}"


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "'=1", "'a"])
def test_a_spreadsheet_computes_nothing(name):
    file = io.StringIO()
    csv.writer(file).writerow([escape.csv_cell(name)])
    (cell,) = next(csv.reader(io.StringIO(file.getvalue())))
    assert cell == f"'{name}"
    assert escape.from_csv_cell(cell) == name


@pytest.mark.parametrize("name", ["$x$", "$\\frac$", "a$b", "$$", "x\\$y$"])
def test_figures_draw_dollars(name):
    drawn = []
    for text, options in ((escape.plot(name), {}), (name, {"parse_math": False})):
        figure = Figure(figsize=(2, 1))
        figure.text(0.1, 0.5, text, **options)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn.append(np.asarray(canvas.buffer_rgba()).copy())
    assert drawn[0].min() < 255 and np.array_equal(*drawn)
