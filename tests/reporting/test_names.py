"""Hostile names in every place, and what each command makes of them."""

import csv
import html
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt

from dcamt.data.phantom import write_phantoms

CLASS = "<script>alert(1)</script>|=1 [red]c[/red] $\\frac$"
CHANNEL = "<img src=x>|[bold]T1[/bold] :cat:"
DATA = "# <script>alert(2)|n [l](javascript:x) `c` $m$"
LICENCE = "<b>CC</b>|BY\n\n# forged\n\x1b[31mred ![i](http:x)"
LICENCE_READ = r"<b>CC</b>|BY # forged \x1b[31mred ![i](http:x)"
CASES = ("a&b", "<i>x", "p%20q", "[red]r :cat:", "it's|y", 'd#1?$z"')
OPTION = "dca-mt:heads=1 #<b>|$x^$ [red]"  # YAML takes what follows the # for a comment


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six phantoms with such names: 2 labelled, 2 unlabelled, 2 validation."""
    root = tmp_path_factory.mktemp("names") / "data"
    write_phantoms(root, 6, (20, 18, 16), seed=3, labeled=2, val=2)
    names = {}
    for part in ("imagesTr", "labelsTr"):
        for path, name in zip(sorted((root / part).iterdir()), CASES, strict=True):
            names[path.name.removesuffix(".nii.gz")] = name
            path.rename(path.with_name(f"{name}.nii.gz"))
    splits = json.loads((root / "splits.json").read_text())
    splits = {part: [names[case] for case in cases] for part, cases in splits.items()}
    (root / "splits.json").write_text(json.dumps(splits))
    about = {"name": DATA, "licence": LICENCE, "modality": {"0": CHANNEL},
             "labels": {"background": 0, CLASS: 1}}  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(about))
    return root


@pytest.fixture(scope="module")
def run(data, tiny, tmp_path_factory) -> Path:
    from dcamt import api  # noqa: PLC0415

    out = tmp_path_factory.mktemp("names-run") / "run"
    return api.train(data, out, splits=data / "splits.json", set=tiny, quiet=True)


def harmless(text: str) -> bool:
    """Whether a terminal would obey nothing of it."""
    return all(line.isprintable() for line in text.split("\n"))


def cells(page: str) -> list[str]:
    return [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", page)]


def rendered(card: str) -> str:
    page = MarkdownIt("commonmark").enable("table").render(card)
    allowed = {"h1", "h2", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li",
               "code"}  # fmt: skip
    assert set(re.findall(r"<(\w+)", page)) <= allowed
    return page


def test_inspect_prints_names_as_they_are(data, cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = cli("inspect", data)
    assert code == 0
    assert harmless(out)
    for name in (DATA, CHANNEL, CLASS, *CASES):
        assert name in out


def test_predict_prints_names_as_they_are(run, data, tmp_path, cli):
    code, _, err = cli("predict", run, data, "--out", tmp_path / "out", "--probabilities")
    assert code == 0
    assert harmless(err)
    assert all(f"  {name}  " in err for name in CASES)
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {
        f"{name}.nii.gz" for name in CASES
    }


def test_evaluate_prints_names_as_they_are(run, data, tmp_path, cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = cli("evaluate", run / "validation", data, "--out", tmp_path / "scores.json")
    assert code == 0
    assert harmless(out)
    assert CLASS in out


def test_the_card_holds_names_and_no_more(run, data, tmp_path, cli):
    code, card, _ = cli("card", run)
    assert code == 0
    assert harmless(card)
    page = rendered(card)
    assert [html.unescape(t) for t in re.findall("<h1>(.*)</h1>", page)] == [
        f"Model card: dca-mt on {DATA}"
    ]
    assert re.findall("<h2>(.*)</h2>", page) == ["Data", "Protocol", "Figures", "Limits", "Licence"]
    for name in (DATA, CLASS, LICENCE_READ):
        assert name in cells(page)
    assert f"({CHANNEL})" in html.unescape(page)
    for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL):
        assert row.count("</t") - 1 in (2, 5)
    code, _, _ = cli("export", run, "--out", tmp_path / "handed-on")
    assert code == 0
    assert (tmp_path / "handed-on" / "card.md").read_text() == card


def test_the_report_holds_names_and_no_more(run, data):
    page = (run / "report.html").read_text(encoding="utf-8")
    assert harmless(page)
    assert not re.search(r"<(b|i|img src=x)\b", page)
    assert page.count("<script") == 5 and CLASS not in page  # two cases and the viewer's own
    assert f"<h1>{html.escape(DATA, quote=False)}</h1>" in page.replace("&#39;", "'")
    shown = json.loads((run / "split.json").read_text())["val"]
    assert {*shown, CLASS} <= {*cells(page)}
    pictures = re.findall(r'<img src="data:image/png[^"]*" alt="([^"]*)"', page)
    assert len(pictures) == len(shown) == 2
    assert all(any(case in html.unescape(alt) for alt in pictures) for case in shown)
    assert f"Licence of the data: {LICENCE_READ}" in html.unescape(page)


@pytest.mark.slow
def test_a_comparison_holds_names_and_no_more(data, tiny, tmp_path, cli):
    out = tmp_path / "out"
    sets = [part for value in tiny if not value.startswith("method.") for part in ("--set", value)]
    code, printed, err = cli("compare", data, "--out", out, "--methods", f"vnet,{OPTION}",
                             "--splits", data / "splits.json", "--seeds", 1, "--jobs", 1,
                             *sets)  # fmt: skip
    assert code == 0, err
    assert harmless(printed) and harmless(err)
    page = rendered(printed)
    assert OPTION in cells(page)
    # No name opens a cell of its own. So short a training may miss structures: two columns more.
    counts = {row.count("</t") - 1 for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)}
    assert counts in ({8}, {10})
    tex = (out / "table.tex").read_text()
    assert r"dca-mt:heads=1 \#$<$b$>$\textbar{}\$x\textasciicircum{}\$ {[}red{]} &" in tex
    with (out / "table.csv").open(newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["vnet", OPTION]
    results = json.loads((out / "results.json").read_text())
    assert results["dataset"] == DATA
    assert str(data.parent) not in (out / "results.json").read_text()


# ---------------------------------------------------------------- what a reader would have refused


def test_names_that_cannot_be_printed_are_refused_where_they_are_read(data, tmp_path, cli):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    about = json.loads((copy / "dataset.json").read_text())
    for key, value in (
        ("labels", {"background": 0, "x\x1b[31m": 1}),
        ("labels", {"background": 0, " ": 1}),
        ("modality", {"0": "T1\u202e"}),
        ("name", "x\x9b"),
    ):
        (copy / "dataset.json").write_text(json.dumps({**about, key: value}))
        for command in (["inspect", copy], ["train", copy, "--out", tmp_path / "run"]):
            code, out, err = cli(*command)
            assert code == 2
            assert f"dataset.json: '{key}'" in err
            assert harmless(out + err)
    assert not (tmp_path / "run").exists()


def test_a_stranger_s_run_orders_the_terminal_nothing(run, tmp_path, cli):
    """Names that no reader of ours would have let into a run folder."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    evil = "\x1b[2J\u202eevil\n# forged\x9b"
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["plan"] |= {"classes": ["background", evil], "channels": [evil]}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    (copy / "data.json").write_text(json.dumps({"name": evil, "licence": evil}))
    (copy / "versions.json").write_text(json.dumps({evil: evil}))
    log = (copy / "log.csv").read_text().replace("supervised_teacher", "$\\frac$ \x1b[31m")
    (copy / "log.csv").write_text(log)
    for command in (["card", copy], ["report", copy], ["export", copy, "--out", tmp_path / "out"]):
        code, out, err = cli(*command)
        assert code == 0, err
        assert harmless(out + err)
    for path in (copy / "report.html", tmp_path / "out" / "card.md"):
        text = path.read_text(encoding="utf-8")
        assert harmless(text)
        assert r"\x1b" in text and r"\u202e" in text
    assert rendered((tmp_path / "out" / "card.md").read_text()).count("<h1>") == 1


def test_a_folder_of_odd_files_orders_the_terminal_nothing(run, tmp_path, cli):
    scans = tmp_path / "scans"
    buried = scans / "x\x1b[31m" / "deep"
    buried.mkdir(parents=True)
    image = nib.Nifti1Image(np.random.default_rng(0).random((20, 18, 16), np.float32), np.eye(4))
    nib.save(image, buried / "a.nii.gz")
    nib.save(image, scans / "good.nii.gz")
    code, out, err = cli("predict", run, scans, "--out", tmp_path / "out")
    assert code == 0, err
    assert r"\x1b[31m: holds scans further down" in err
    assert harmless(out + err)
    labels = tmp_path / "labels"
    labels.mkdir()
    label = nib.Nifti1Image(np.zeros((20, 18, 16), np.uint8), np.eye(4))
    nib.save(label, labels / "a.nii.gz")
    (labels / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "x\x1b[31m": 1}}))
    _, out, err = cli("evaluate", labels, labels, "--out", tmp_path / "scores.json")
    assert harmless(out + err)


# --------------------------------------------------------------------------------- what is shown


def test_a_moved_data_set_leaves_name_and_licence(run, data, tmp_path, cli):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace(str(data), str(tmp_path / "gone")))
    _, card, _ = cli("card", copy)
    assert LICENCE_READ in cells(rendered(card))
    cli("report", copy)
    page = (copy / "report.html").read_text(encoding="utf-8")
    assert f"<h1>{html.escape(DATA, quote=False)}</h1>" in page
    assert f"Licence of the data: {LICENCE_READ}" in html.unescape(page)


def test_a_report_names_no_folder_of_the_machine(run, data, tmp_path, cli, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "validation" / f"{CASES[-1]}.nii.gz").write_bytes(b"broken")
    monkeypatch.chdir(tmp_path)
    for folder in (copy, "copy"):
        cli("report", folder)
        page = (copy / "report.html").read_text(encoding="utf-8")
        assert "No picture: copy/validation" in page
        assert str(data.parent) not in page and str(tmp_path) not in page
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace(str(data), str(tmp_path / "gone")))
    cli("report", copy)
    page = (copy / "report.html").read_text(encoding="utf-8")
    assert "cannot be read: gone: no such folder" in page
    assert str(tmp_path) not in page
