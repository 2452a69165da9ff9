"""What the runs of a comparison have found, together: results, tables and pictures."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dcamt.data.dataset import Dataset
from dcamt.evaluation.metrics import METRICS
from dcamt.evaluation.statistics import against_first, case_means, gap_closed, over_seeds
from dcamt.files import atomic, write_json, write_text
from dcamt.records.results import ResultRow, Results
from dcamt.records.scores import read_scores
from dcamt.reporting.cases import read_case
from dcamt.reporting.charts import plot_efficiency, plot_metrics
from dcamt.reporting.planes import plot_contours
from dcamt.reporting.tables import csv_text, latex, markdown
from dcamt.reporting.values import shown
from dcamt.runs.design import BASELINE, Cases, PlannedRun, Row


def collect(
    dataset: Dataset, rows: Sequence[Row], cases: Sequence[Cases], runs: Sequence[PlannedRun]
) -> Results:
    """Everything that the tables and figures show, from the scores of finished runs."""
    lines: list[ResultRow] = []
    for c in sorted(cases, key=lambda c: (c.name == "all", len(c.split.labeled))):
        names = dict.fromkeys(run.row.name for run in runs if run.cases is c)
        of_row = {n: [r for r in runs if r.cases is c and r.row.name == n] for n in names}
        scores = {
            name: [read_scores(run.scores, METRICS) for run in of_row[name]] for name in names
        }
        tests = against_first(list(scores.values()))
        for (name, found), p in zip(of_row.items(), tests, strict=True):
            lines.append(
                {
                    "name": name,
                    "method": found[0].config.method.model_dump(mode="json"),
                    "labels": c.name,
                    "labeled": len(c.split.labeled),
                    "ceiling": c.name == "all",
                    "seeds": [run.seed for run in found],
                    **over_seeds(scores[name]),
                    "p": p,
                    "gap_closed": None,
                    "runs": [
                        {"seed": run.seed, "folder": f"runs/{run.folder.name}", **score}
                        for run, score in zip(found, scores[name], strict=True)
                    ],
                }
            )
    _add_gap(lines)
    return {
        "dataset": dataset.name,
        "cases": cases[0].scored,
        "case_count": len(cases[0].judged),
        "weights": "last",
        "unit": lines[-1]["runs"][0]["unit"],
        "first": rows[0].name,
        "rows": lines,
    }


def _add_gap(lines: Sequence[ResultRow]) -> None:
    """Fill in ``gap_closed`` where the baseline was trained with few and with all labels."""
    full = next((line["mean"]["dice"] for line in lines if line["ceiling"]), None)
    for line in lines:
        same = (r for r in lines if r["labels"] == line["labels"] and r["name"] == BASELINE)
        few = next((r["mean"]["dice"] for r in same), None)
        value = line["mean"]["dice"]
        if not line["ceiling"] and full is not None and few is not None and value is not None:
            line["gap_closed"] = gap_closed(value, few, full)


def write_results(
    results: Results, dataset: Dataset, runs: Sequence[PlannedRun], out: Path
) -> None:
    """Write results.json, the tables and the pictures to ``out``."""
    write_json(results, out / "results.json")
    write_text(out / "table.md", markdown(results))
    write_text(out / "table.csv", csv_text(results))
    write_text(out / "table.tex", latex(results))
    rows = results["rows"]
    names = dict.fromkeys(row["labels"] for row in rows if not row["ceiling"])
    for labels in names:
        with_ceiling = [row for row in rows if row["labels"] == labels or row["ceiling"]]
        _save(plot_metrics(with_ceiling, results["unit"]), out / f"metrics-{labels}-labels.png")
        few = [row for row in with_ceiling if not row["ceiling"]]
        _save(_contours(dataset, runs, few), out / f"contours-{labels}-labels.png")
    if len(names) > 1:
        _save(plot_efficiency(rows), out / "labels.png")


def _contours(dataset: Dataset, runs: Sequence[PlannedRun], rows: Sequence[ResultRow]) -> Figure:
    """The median case by Dice over all rows, as the first seed of each row segmented it."""
    means = case_means([run for row in rows for run in row["runs"]], "dice")
    ranked = sorted(means, key=lambda name: (means[name], name))
    name = ranked[len(ranked) // 2] if ranked else runs[0].cases.judged[0]
    titles, folders, values = [], [], set()
    for row in rows:
        first = row["runs"][0]
        run = next(run for run in runs if first["folder"] == f"runs/{run.folder.name}")
        dice = case_means([first], "dice").get(name)
        titles.append(row["name"] if dice is None else f"{row['name']}: {shown(dice, 'dice', 1)}")
        folders.append(run.folder / run.cases.scored)
        values |= {score["class"] for score in first["cases"]}
    image, reference, found = read_case(dataset, name, folders)
    predictions = dict(zip(titles, found, strict=True))
    return plot_contours(image.array[0], reference, predictions, image.affine, sorted(values))


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata={"Software": None})
