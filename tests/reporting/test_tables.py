import csv
import io

import pytest

from dcamt.evaluation.metrics import METRICS
from dcamt.reporting.charts import plot_efficiency, plot_metrics
from dcamt.reporting.tables import csv_text, latex, markdown
from dcamt.reporting.values import DASH


def row(name, labels, numbers, **more):
    mean = dict(zip(METRICS, numbers, strict=True))
    return {
        "name": name, "labels": labels, "labeled": 160 if labels == "all" else int(labels),
        "ceiling": labels == "all", "seeds": [0, 1], "mean": mean,
        "std": dict.fromkeys(METRICS, 0.012), "p": dict.fromkeys(METRICS), "gap_closed": None,
        "missed": 0, "invented": 0, "runs": [{"mean": mean}], **more,
    }  # fmt: skip


@pytest.fixture
def results():
    p = {"dice": 0.0004, "jaccard": 0.2, "hd95": 0.04, "asd": 1.0}
    rows = [
        row("vnet", "8", (0.8, 0.7, 2.0, 0.5), gap_closed=0.0),
        row("a_b", "8", (0.85, 0.65, 1.5, None), p=p, gap_closed=0.5),
        row("vnet", "all", (0.9, 0.8, 1.0, 0.4)),
    ]
    return {"rows": rows, "unit": "mm", "cases": "test", "case_count": 5, "first": "vnet"}


def test_markdown(results):
    lines = markdown(results).replace(DASH, "-").splitlines()
    assert lines[0] == (
        "| method | labels | seeds | Dice (%) | Jaccard (%) | 95HD (mm) | ASD (mm) | p "
        "| gap closed |"
    )
    assert lines[2:5] == [
        "| vnet | 8 | 2 | 80.00 ± 1.20 | **70.00 ± 1.20** | 2.00 ± 0.01 | **0.50 ± 0.01** "
        "| - | 0 % |",
        "| a_b | 8 | 2 | **85.00 ± 1.20 †** | 65.00 ± 1.20 | **1.50 ± 0.01 †** | - | < 0.001 "
        "| 50 % |",
        "| vnet | all | 2 | 90.00 ± 1.20 | 80.00 ± 1.20 | 1.00 ± 0.01 | 0.40 ± 0.01 | - | - |",
    ]
    assert "5 test cases" in lines[-1]
    assert "over 2 seeds" in lines[-1]
    assert "issed" not in lines[-1]


def test_missed_structures_are_shown(results):
    results["rows"][1] |= {"missed": 3, "invented": 1}
    text = markdown(results)
    assert "| 50 % | 3 | 1 |" in text
    assert "Missed and invented structures" in text


def test_latex_needs_no_mending(results):
    text = latex(results)
    assert r"a\_b & 8 & 2 & \textbf{85.00 $\pm$ 1.20$^\dagger$} & 65.00" in text
    assert r"$<$ 0.001 & 50 \% \\" in text
    assert not {"±", "†", DASH} & set(text)
    assert text.count(r"\midrule") == 2


def test_csv_is_unrounded(results):
    rows = list(csv.DictReader(io.StringIO(csv_text(results))))
    assert [r["method"] for r in rows] == ["vnet", "a_b", "vnet"]
    assert float(rows[1]["dice_mean"]) == 0.85
    assert float(rows[1]["dice_p"]) == 0.0004
    assert (rows[1]["asd_mean"], rows[0]["dice_p"]) == ("", "")


def test_charts_show_every_method(results):
    few = [r for r in results["rows"] if not r["ceiling"]]
    axes = plot_metrics(results["rows"], "mm").axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["vnet", "a_b"]
    assert [a.get_title(loc="left") for a in axes] == [
        "Dice (%)", "Jaccard (%)", "95HD (mm)", "ASD (mm)"
    ]  # fmt: skip
    more = [r | {"labels": "16", "labeled": 16} for r in few]
    figure = plot_efficiency([*results["rows"], *more])
    shown = {text.get_text() for text in figure.legends[0].get_texts()}
    assert shown == {"vnet", "a_b", "vnet, all 160 labels"}
    ceiling = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert list(ceiling[0].get_ydata()) == [90.0, 90.0]
