"""The table of a comparison as Markdown, CSV and LaTeX, from what ``dcamt compare`` found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dcamt import escape
from dcamt.evaluation.metrics import METRICS, OVERLAPS
from dcamt.records.results import ResultRow, Results
from dcamt.records.scores import Metric
from dcamt.reporting.values import DASH, heading, shown, with_spread
from dcamt.wording import number_of, percent

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Cell:
    """What stands in one place of the table, as plain text."""

    text: str
    best: bool = False
    differs: bool = False  # from the first method, significantly

    @property
    def shown(self) -> str:
        """The text with the sign of a difference."""
        return f"{self.text} †" if self.differs else self.text


def markdown(results: Results) -> str:
    """The table in Markdown, with a line below it that says what its figures are."""

    def show(cell: Cell) -> str:
        text = escape.markdown(cell.shown)
        return f"**{text}**" if cell.best else text

    table = [[Cell(name) for name in columns(results)], *lines(results)]
    rows = ["| " + " | ".join(show(cell) for cell in line) + " |" for line in table]
    rows.insert(1, "|---" * len(table[0]) + "|")
    return "\n".join([*rows, "", escape.markdown(caption(results)), ""])


def latex(results: Results) -> str:
    """The table as LaTeX; it needs the package booktabs."""

    def show(cell: Cell) -> str:
        text = escape.latex(cell.text) + (r"$^\dagger$" if cell.differs else "")
        return rf"\textbf{{{text}}}" if cell.best else text

    def line(cells: Sequence[Cell]) -> str:
        return " & ".join(show(cell) for cell in cells) + r" \\"

    heads = columns(results)
    body: list[str] = []
    previous = None
    for row, cells in zip(results["rows"], lines(results), strict=True):
        if previous not in (None, row["labels"]):
            body.append(r"\midrule")
        body.append(line(cells))
        previous = row["labels"]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape.latex(caption(results))}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"\toprule",
            line([Cell(name) for name in heads]),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def csv_text(results: Results) -> str:
    """One line a row, unrounded, Dice and Jaccard as fractions; a missing value is empty."""
    numbers = [f"{metric}_{kind}" for metric in METRICS for kind in ("mean", "std", "p")]
    table: list[list[object]] = [
        ["method", "labels", "seeds", *numbers, "gap_closed", "missed", "invented"]
    ]
    for row in results["rows"]:
        cells = [row[kind][metric] for metric in METRICS for kind in ("mean", "std", "p")]
        last = [row["gap_closed"], row["missed"], row["invented"]]
        name = escape.csv_cell(row["name"])
        table.append([name, row["labels"], len(row["seeds"]), *cells, *last])
    return escape.csv_text(table)


def caption(results: Results) -> str:
    """What the figures are: of which cases, over what the spread is, what the signs mean."""
    seeds = max(len(row["seeds"]) for row in results["rows"])
    n, kind = results["case_count"], results["cases"]
    parts = [
        f"{number_of(n, f'{kind} case')}, last weights, "
        + (
            f"mean ± sample standard deviation over {seeds} seeds"
            if seeds > 1
            else "one seed: no spread is known"
        )
        + "; best of each number of labels in bold."
    ]
    if any(p is not None for row in results["rows"] for p in row["p"].values()):
        parts.append(
            f"p and †: against {results['first']}, two-sided Wilcoxon signed-rank test over the "
            "cases, Holm-corrected over the methods; p is of Dice, † is p < 0.05 of that column."
        )
    if any(row["ceiling"] for row in results["rows"]):
        parts.append("The row with all labels is the ceiling, not a competitor.")
    if _uncounted(results):
        parts.append(
            "Missed and invented structures, in all seeds together, have no distance: 95HD and ASD "
            "are over the others, Dice and Jaccard count them as 0."
        )
    return " ".join(parts)


def columns(results: Results) -> list[str]:
    """What each column is, the first two being the method and the number of labels."""
    measured = [heading(metric, results["unit"]) for metric in METRICS]
    names = ["method", "labels", "seeds", *measured, "p"]
    names += ["gap closed"] * _has_gap(results)
    return names + ["missed", "invented"] * _uncounted(results)


def lines(results: Results) -> list[list[Cell]]:
    """The cells of every row."""
    found = []
    for row in results["rows"]:
        rivals = [r for r in results["rows"] if r["labels"] == row["labels"] and not r["ceiling"]]
        p = row["p"]["dice"]
        cells = [Cell(row["name"]), Cell(row["labels"]), Cell(str(len(row["seeds"])))]
        cells += [_metric(row, rivals, metric) for metric in METRICS]
        cells.append(Cell(DASH if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"))
        if _has_gap(results):
            gap = row["gap_closed"]
            cells.append(Cell(DASH if gap is None else percent(gap, digits=0)))
        if _uncounted(results):
            cells += [Cell(str(row["missed"])), Cell(str(row["invented"]))]
        found.append(cells)
    return found


def _metric(row: ResultRow, rivals: Sequence[ResultRow], metric: Metric) -> Cell:
    mean, std, p = row["mean"][metric], row["std"][metric], row["p"][metric]
    first = best(rivals, metric)
    # What reads alike is alike, so that nobody asks for the third decimal.
    leads = mean is not None and shown(mean, metric) == shown(first, metric)
    return Cell(
        with_spread(mean, std, metric),
        best=leads and not row["ceiling"] and len(rivals) > 1,
        differs=mean is not None and p is not None and p < SIGNIFICANT,
    )


def best(rows: Sequence[ResultRow], metric: Metric) -> float | None:
    """The best mean among the rows: the largest overlap, the smallest distance."""
    choose: Callable[[list[float]], float] = max if metric in OVERLAPS else min
    means = [mean for row in rows if (mean := row["mean"][metric]) is not None]
    return choose(means) if means else None


def _has_gap(results: Results) -> bool:
    return any(row["gap_closed"] is not None for row in results["rows"])


def _uncounted(results: Results) -> bool:
    return any(row["missed"] or row["invented"] for row in results["rows"])
