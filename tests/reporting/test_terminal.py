"""Tables for the terminal: what they show, and that they fit."""

import pytest
from rich.console import Console

from dcamt.evaluation.metrics import TITLES
from dcamt.reporting.terminal import comparison_table, score_tables
from dcamt.reporting.values import DASH

FOUR = ("dice", "jaccard", "hd95", "asd")
LONG = "sub-hospitalname_ses-baseline_acq-mprage_run-00{}_T1w"


def summary(metrics, **more):
    spread = {m: 0.125 if m in ("dice", "jaccard", "nsd") else 112.5 for m in metrics}
    return {**dict.fromkeys(metrics, 0.5), "std": spread, "missed": 1, "invented": 0, **more}


def result(names, metrics=FOUR):
    whole = summary(metrics)
    return {
        "cases": [{"case": "a"}, {"case": "b"}],
        "mean": {metric: whole.pop(metric) for metric in metrics},
        **whole,
        "per_class": {str(i): summary(metrics, class_name=n) for i, n in enumerate(names, 1)},
        "not_predicted": 3,
        "unit": "voxels",
        **({"tolerance": 1.5} if "nsd" in metrics else {}),
    }


def printed(*tables, width=80):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(*tables)
    return capture.get()


def test_a_line_a_class_and_one_over_all():
    (table,) = score_tables(result(["left", "[r]"]), 80)
    columns = {str(column.header): [str(cell) for cell in column.cells] for column in table.columns}
    overlap, distance = 3 * ["50.00 ± 12.50"], 3 * ["0.50 ± 112.50"]
    assert columns == {
        "Class": ["left", "[r]", "all"],
        "Dice (%)": overlap,
        "Jaccard (%)": overlap,
        "95HD (voxels)": distance,
        "ASD (voxels)": distance,
        "Missed": ["1", "1", "1"],
        "Invented": ["0", "0", "0"],
    }
    text = printed(table)
    assert "2 cases, mean ± standard deviation" in text
    assert "left out: 3" in text
    assert "[r]" in text


@pytest.mark.parametrize("width", [80, 60, 200])
@pytest.mark.parametrize("metrics", [FOUR, tuple(TITLES)])
@pytest.mark.parametrize("names", [["left"], [LONG.format(1), LONG.format(2)], ["x" * 200, "y"]])
def test_no_number_and_no_name_is_cut(names, metrics, width):
    tables = score_tables(result(names, metrics), width)
    text = printed(*tables, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    rows = len(names) + (len(names) > 1)
    overlaps = sum(metric in ("dice", "jaccard", "nsd") for metric in metrics)
    assert text.count("50.00 ± 12.50") == rows * overlaps
    assert text.count("0.50 ± 112.50") == rows * (len(metrics) - overlaps)
    for table in tables:
        column = "".join(line.split()[0] for line in printed(table, width=width).splitlines()
                         if line.split() and line.startswith(" " + line.split()[0]))  # fmt: skip
        assert all(name in column for name in names)
    assert ("NSD within 1.5 voxels" in " ".join(text.split())) == ("nsd" in metrics)


def test_one_wide_table_where_there_is_room():
    assert len(score_tables(result(["left"], tuple(TITLES)), 160)) == 1


def test_what_does_not_exist_is_a_dash():
    scores = result(["left"])
    scores["per_class"]["1"] |= {"hd95": None, "std": dict.fromkeys(FOUR)}
    (table,) = score_tables(scores, 80)
    assert [str(cell) for cell in table.columns[3].cells] == [DASH]


def test_a_comparison_fits_too():
    name = "dca-mt:components=cross-attention:shared_attention=true:targets=soft"
    rows = [
        {
            "name": name, "labels": labels, "ceiling": False, "seeds": [0, 1],
            "mean": dict.fromkeys(FOUR, 0.5), "std": dict.fromkeys(FOUR, 0.01),
            "p": dict.fromkeys(FOUR, 0.01), "gap_closed": 0.5, "missed": 1, "invented": 0,
        }
        for labels in ("4", "8")
    ]  # fmt: skip
    results = {"rows": rows, "unit": "mm", "cases": "test", "case_count": 5, "first": "vnet"}
    text = printed(comparison_table(results, 80))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert text.count("50.00 ± 1.00 †") == 4
    assert "8 labels" in text
    assert "two-sided Wilcoxon" in text
