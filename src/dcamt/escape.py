"""Names for the medium they are written to: one function a medium.

Names of classes, channels, cases and data sets come from files that a stranger may have made. In
every medium some characters are orders: to a terminal, to Markdown, to a spreadsheet. Each function
takes plain text and returns what shows that text. HTML is escaped by its template.
"""

import csv
import html
import io
import re
from collections.abc import Iterable, Sequence

_MARKDOWN = re.compile(r"[\\`*\[\]{}#]|(?<![^\W_])_|_(?![^\W_])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "$": "&#36;", "~": "&#126;"}
_LATEX = {
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    **{sign: f"{{{sign}}}" for sign in "[]*"},  # after a line's end they would be its options
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "\N{EN DASH}": "--",
}


def printable(text: str) -> str:
    r"""``text`` as one line for a terminal: line breaks, control and bidi characters as ``\x1b``.

    What the other functions return is printable too.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def markdown(text: str) -> str:
    """``text`` within a line or a table cell of Markdown.

    Underscores within words, and ``<`` before a space, order nothing and stay.
    """
    escaped = _MARKDOWN.sub(r"\\\g<0>", printable(text))
    return re.sub("<(?! )|[&>|$~]", lambda found: _ENTITIES[found[0]], escaped)


def plain(text: str) -> str:
    """The text that ``markdown`` was given, from what it returned."""
    return html.unescape(re.sub(r"\\(.)", r"\1", text))


def latex(text: str) -> str:
    """``text`` in LaTeX, also as the first cell of a line."""
    return "".join(_LATEX.get(sign, sign) for sign in printable(text))


def csv_cell(text: str) -> str:
    """``text`` in a CSV file: what a spreadsheet would take for a formula begins with ``'``.

    So does what begins with ``'`` itself, so that ``from_csv_cell`` gives the text back.
    """
    line = printable(text)
    return f"'{line}" if line.lstrip()[:1] in tuple("=+-@'") else line


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """``rows`` as a CSV file. Names in it have been through ``csv_cell``."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def from_csv_cell(cell: str) -> str:
    """The text that ``csv_cell`` wrote as ``cell``."""
    quoted = cell[:1] == "'" and cell[1:].lstrip()[:1] in tuple("=+-@'")
    return cell[1:] if quoted else cell


def monai(text: str) -> str:
    """``text`` as a value in a MONAI Bundle: what MONAI would evaluate begins with ``'``."""
    return f"'{text}" if text[:1] in tuple("$@%") else text


def plot(text: str) -> str:
    """``text`` in a figure of matplotlib, which takes what stands between dollars for maths."""
    return printable(text).replace("$", r"\$")
