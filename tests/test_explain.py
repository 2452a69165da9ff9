"""benchmarks/explain_training.py looks at the branches of a method while it trains."""

import csv
import importlib
import sys
from pathlib import Path

import yaml

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_each_branch_is_scored_and_a_second_call_trains_nothing(
    phantoms, cache, tmp_path, monkeypatch, capsys
):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "explained"
    recipe.write_text(
        yaml.safe_dump(
            {
                "device": "cpu",
                "data": {"patch": [16, 16, 16]},
                "network": {"width": 2},
                "train": {"iterations": 4, "learning_rate": 0.05},
            }
        )
    )
    monkeypatch.syspath_prepend(BENCHMARKS)
    explain = importlib.import_module("explain_training")
    asked = [phantoms, "--splits", phantoms / "splits.json", "--config", recipe, "--out", out]
    monkeypatch.setattr(
        sys, "argv", ["explain", *map(str, asked), "--methods=vnet,dca-mt", "--looks=2"]
    )
    explain.main()

    with (out / "explained.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["iteration"]) for row in rows] == [
        ("vnet", "2"),
        ("vnet", "4"),
        ("dca-mt", "2"),
        ("dca-mt", "4"),
    ]
    for row in rows:
        two = row["method"] == "dca-mt"
        assert bool(row["branch 1"] and row["branch 2"] and row["differ"]) == two
        assert 0 <= float(row["mean"]) <= 100
    assert (out / "explained.png").stat().st_size > 10_000

    assert capsys.readouterr().out.count("iteration") == 4
    explain.main()
    assert "iteration" not in capsys.readouterr().out
