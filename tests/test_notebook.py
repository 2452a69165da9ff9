"""The notebook runs from top to bottom, and what it shows is true."""

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "first-steps.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    shown: dict[str, Any] = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs"), "clear the outputs before you save the notebook"
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), shown)
    assert shown["found"].errors == []
    assert len(shown["files"]) == 3
    assert (tmp_path / "run" / "report.html").is_file()
    assert shown["scores"]["mean"]["dice"] > 0.5
    assert "Dice:" in capsys.readouterr().out
