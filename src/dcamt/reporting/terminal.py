"""Scores and comparisons as tables for the terminal, none of them wider than it is."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dcamt.escape import printable
from dcamt.evaluation.statistics import metrics_of
from dcamt.records.results import Results
from dcamt.records.scores import Scores, class_summary
from dcamt.reporting.tables import caption, columns, lines
from dcamt.reporting.values import heading, with_spread
from dcamt.wording import number_of


def score_tables(result: Scores, width: int) -> list[Table]:
    """What `evaluate` found: a line a class and one over all, mean ± standard deviation.

    ``width`` is the terminal's, in characters.
    """
    classes = result["per_class"]
    found = [class_summary(of_class) for of_class in classes.values()]
    names = [of_class.get("class_name", key) for key, of_class in classes.items()]
    if len(found) > 1:
        found.append(result)
        names.append("all")
    cells = {
        heading(metric, result["unit"]): [
            Text(with_spread(summary["mean"][metric], summary["std"][metric], metric))
            for summary in found
        ]
        for metric in metrics_of(result)
    }
    cells["Missed"] = [Text(str(summary["missed"])) for summary in found]
    cells["Invented"] = [Text(str(summary["invented"])) for summary in found]
    tables = _fitting("Class", names, cells, width)
    for table in tables:
        if len(names) > 1:
            table.rows[-2].end_section = True
    cases = number_of(len({row["case"] for row in result["cases"]}), "case")
    title = f"{cases}, mean ± standard deviation"
    if "tolerance" in result:
        title += f"; NSD within {result['tolerance']:g} {result['unit']}"
    tables[0].title = title
    if left_out := result.get("not_predicted"):
        tables[-1].caption = f"Labels without a prediction, left out: {left_out}"
    return tables


def comparison_table(results: Results, width: int) -> RenderableType:
    """What `dcamt.reporting.tables.markdown` writes, for a terminal of ``width`` characters."""
    names = [f"{row['name']}, {row['labels']} labels" for row in results["rows"]]
    _, _, *heads = columns(results)
    _, _, *cells = (
        [Text(cell.shown, "bold" if cell.best else "") for cell in column]
        for column in zip(*lines(results), strict=True)
    )
    tables = _fitting("method", names, dict(zip(heads, cells, strict=True)), width)
    return Group(*tables, Text(printable(caption(results))))


def _fitting(
    head: str, names: Sequence[str], cells: Mapping[str, Sequence[Text]], width: int
) -> list[Table]:
    """Tables of the ``names`` with as many columns as fit; the others follow in further tables.

    ``cells`` are the columns by their headings; numbers are never cut. Names take two lines, or
    more where they would take over half of the width.
    """
    shown = [Text(printable(name)) for name in names]
    longest = max(text.cell_len for text in (Text(head), *shown))
    least = min(-(-longest // 2), width // 2)
    groups: list[list[str]] = []
    room = 0
    for title, column in cells.items():
        needed = 1 + max(text.cell_len for text in (Text(title), *column))
        if needed > room:
            groups.append([])
            room = width - least - 2  # of the frame
        groups[-1].append(title)
        room -= needed
    return [
        _table(head, shown, {title: cells[title] for title in group}, least) for group in groups
    ]


def _table(
    head: str, names: Sequence[Text], cells: Mapping[str, Sequence[Text]], least: int
) -> Table:
    table = Table(box=SIMPLE, padding=0)
    table.add_column(head, overflow="fold", min_width=least)
    for title in cells:
        table.add_column(title, justify="right", no_wrap=True)
    for row in zip(names, *cells.values(), strict=True):
        table.add_row(*row)
    return table
