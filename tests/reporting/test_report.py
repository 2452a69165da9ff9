import base64
import json
import re
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from dcamt.data.volume import write_volume
from dcamt.errors import InputError
from dcamt.records.scores import read_scores
from dcamt.reporting.report import write_report
from dcamt.reporting.values import heading

CASES = ("one", "two", "three", "four <b>")
CLASSES = ("background", "Kidney <left>", "Tumour")


def draw_case(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two-channel image, label with two touching blobs, oblique anisotropic affine."""
    shape = (30 + index, 26, 14)
    spacing = np.array([1.0, 1.0, 3.0])
    grid = np.stack(np.indices(shape), axis=-1) * spacing
    centre = np.array(shape) * spacing / 2
    label = np.zeros(shape, np.uint8)
    label[np.linalg.norm(grid - centre, axis=-1) < 9] = 1
    label[np.linalg.norm(grid - centre - [5, 0, 0], axis=-1) < 4] = 2
    rng = np.random.default_rng(index)
    image = rng.normal(100 + 40 * (label > 0), 10).astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(0.2, 0.1, 0.3) @ np.diag(spacing * [-1, 1, 1])
    return np.stack([image, -image]), label, affine


def write_dataset(root: Path) -> None:
    entries = []
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    for index, name in enumerate(CASES):
        image, label, affine = draw_case(index)
        # The Decathlon keeps channels in the fourth axis of one file.
        stacked = nib.Nifti1Image(np.moveaxis(image, 0, -1), affine)
        nib.save(stacked, root / "imagesTr" / f"{name}.nii.gz")
        write_volume(root / "labelsTr" / f"{name}.nii.gz", label, affine)
        entries.append({"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"})
    description = {
        "name": "Kidneys & tumours",
        "modality": {"0": "T1", "1": "T2"},
        "labels": {str(value): name for value, name in enumerate(CLASSES)},
        "numTraining": len(entries),
        "training": entries,
        "test": [],
    }
    (root / "dataset.json").write_text(json.dumps(description))


def score(case: str, value: int, dice: float | None, outcome: str = "ok") -> dict[str, Any]:
    measured = outcome == "ok"
    return {
        "case": case,
        "class": value,
        "dice": dice,
        "jaccard": None if dice is None else dice / (2 - dice),
        "hd95": 3.25 if measured else None,
        "asd": 0.75 if measured else None,
        "outcome": outcome,
    }


SPREAD = {"dice": 0.172, "jaccard": 0.1, "hd95": 0.0, "asd": 0.0}
SCORES = {
    "cases": [
        score("one", 1, 0.90),
        score("one", 2, 0.80),
        score("two", 1, 0.95),
        score("two", 2, 0.0, "missed"),
        score("three", 1, 0.70),
        score("three", 2, None, "both empty"),
        score("four <b>", 1, 0.85),
        score("four <b>", 2, 0.0, "invented"),
    ],
    "mean": {"dice": 0.6, "jaccard": 0.5123, "hd95": 3.25, "asd": 0.75},
    "std": SPREAD,
    "per_class": {
        "1": {
            "dice": 0.85,
            "jaccard": 0.74,
            "hd95": 3.25,
            "asd": 0.75,
            "std": SPREAD,
            "missed": 0,
            "invented": 0,
        },
        "2": {
            "dice": 0.8 / 3,
            "jaccard": 0.22,
            "hd95": None,
            "asd": None,
            "std": SPREAD,
            "missed": 1,
            "invented": 1,
        },
    },
    "missed": 1,
    "invented": 1,
    "unit": "mm",
}

LOG = """iteration,seconds,learning_rate,supervised,val_dice
1,0.5,0.01,1.2,
2,0.9,0.01,1.1,0.41
3,1.4,0.001,0.9,
4,1.9,0.001,0.8,0.62
"""


def write_run(run: Path, dataset: Path) -> None:
    (run / "validation").mkdir(parents=True)
    config = {
        "dataset": str(dataset),
        "seed": 7,
        "plan": {"classes": list(CLASSES), "ignore": None},
        "train": {"iterations": 4},
        "method": {"name": "dca-mt"},
        "predict": {"overlap": 0.5},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    split = {"labeled": ["a", "b"], "unlabeled": ["c"] * 5, "val": list(CASES), "test": []}
    (run / "split.json").write_text(json.dumps(split))
    (run / "versions.json").write_text(json.dumps({"dcamt": "0.1.0", "torch": "2.8.0"}))
    (run / "log.csv").write_text(LOG)
    (run / "best.safetensors").touch()
    (run / "validation.json").write_text(json.dumps(SCORES))
    for index, name in enumerate(CASES):
        _, label, affine = draw_case(index)
        write_volume(run / "validation" / f"{name}.nii.gz", np.roll(label, 1, axis=0), affine)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "dataset")
    write_run(tmp_path / "run", tmp_path / "dataset")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    write_dataset(folder / "dataset")
    write_run(folder / "run", folder / "dataset")
    path = write_report(folder / "run")
    assert path == folder / "run" / "report.html"
    return path.read_text(encoding="utf-8")


def visible(page: str) -> str:
    """The text of a page without style, tags and runs of white space."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


def pictures(page: str) -> list[bytes]:
    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    return [base64.b64decode(text) for text in found]


def test_report_shows_the_run(page: str) -> None:
    text = visible(page)
    assert "Kidneys &amp; tumours" in page
    assert "dca-mt" in text
    for fact in (
        "Labelled cases 2",
        "Unlabelled cases 5",
        "Validation cases 4",
        "Missed structures 1",
        "Invented structures 1",
        "Iterations 4",
        "Seed 7",
    ):
        assert fact in text
    # Case means of Dice: 0.85, 0.475, 0.70, 0.425; their standard deviation is 0.1718.
    assert "Dice 60.0 % ± 17.2 over 4 cases" in text
    assert "95HD 3.25 mm ± 0.00" in text
    assert "Research use only, not a medical device" in text
    assert "not chosen by them; best.safetensors was" in text
    assert "torch 2.8.0" in text
    assert "train: {iterations: 4}" in text


def test_report_stands_alone_and_escapes_names(page: str) -> None:
    assert len(page) < 3e6
    assert "Kidney &lt;left&gt;" in page
    assert "Kidney <left>" not in page
    assert "four &lt;b&gt;" in page
    assert "<b>" not in page
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)"', page))
    assert not re.search(r"<(link|iframe)|href=|@import|url\(", page)
    assert "default-src 'none'" in page and "connect-src" not in page and "unsafe" not in page
    # What the viewer is told, four cases, NiiVue and the viewer.
    assert page.count("<script") == page.count("</script>") == 7


@pytest.mark.parametrize(
    ("predict", "shown"),
    [
        ({"overlap": 0.5, "stride": None, "batch": 4}, "Prediction: overlap 0.5, batch 4."),
        ({"overlap": 0.5, "stride": [18, 18, 4]}, "Prediction: stride 18 x 18 x 4."),
        ({}, None),
    ],
)
def test_windows_are_told_by_what_was_used(run: Path, predict: dict, shown: str | None) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"predict": predict}
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    text = visible(write_report(run).read_text(encoding="utf-8"))
    assert "None" not in text
    assert shown in text if shown else "Prediction:" not in text


def with_metrics(*metrics: str) -> dict[str, Any]:
    """The scores with other metrics, 0.25 each where they are measured."""

    def change(part: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in part.items() if key not in SPREAD}
        measured = part.get("dice", 0) is not None
        return kept | dict.fromkeys(metrics, 0.25 if measured else None)

    return SCORES | {
        "cases": [change(row) for row in SCORES["cases"]],
        "mean": change(SCORES["mean"]),
        "std": change(SPREAD),
        "per_class": {
            key: change(found) | {"std": change(SPREAD)}
            for key, found in SCORES["per_class"].items()
        },
        **({"tolerance": 2.0} if "nsd" in metrics else {}),
    }


@pytest.mark.parametrize("metrics", [("nsd", "hd"), ("dice", "nsd", "assd", "hd95_max", "hd")])
def test_scores_of_other_metrics_are_shown(run: Path, metrics: tuple[str, ...]) -> None:
    (run / "validation.json").write_text(json.dumps(with_metrics(*metrics)))
    page = write_report(run).read_text(encoding="utf-8")
    assert re.findall(r"<th>([^<]*)</th>", page)[: len(metrics)] == [
        heading(metric, "mm") for metric in metrics
    ]
    text = visible(page)
    assert "NSD 25.0 %" in text and "HD 0.25 mm" in text and "Jaccard (%)" not in text
    assert "within 2.0 mm of the other" in text
    assert len(pictures(page)) == (3 if "dice" in metrics else 0)
    assert read_scores(run / "validation.json")["mean"]["nsd"] == 0.25
    with pytest.raises(InputError, match=r"validation\.json: lacks jaccard"):
        read_scores(run / "validation.json", ["nsd", "jaccard"])


@pytest.mark.parametrize("part", ["cases", "std", "per_class", "tolerance"])
def test_scores_that_lack_a_metric_somewhere_are_refused(run: Path, part: str) -> None:
    scores = with_metrics("dice", "nsd")
    if part == "cases":
        del scores["cases"][3]["nsd"]
    elif part == "per_class":
        del scores["per_class"]["2"]["std"]["nsd"]
    else:
        scores.pop(part) if part == "tolerance" else scores[part].pop("nsd")
    (run / "validation.json").write_text(json.dumps(scores))
    with pytest.raises(InputError, match=r"validation\.json: lacks keys"):
        write_report(run)


def test_rows_are_sorted_worst_first(page: str) -> None:
    table = page[page.index("<h2>Cases") :]
    rows = re.findall(r"<tr( class=\"flagged\")?><td[^>]*>([^<]*)</td>(.*?)</tr>", table)
    rows = [row for row in rows if row[1] not in ("dcamt", "torch")]
    assert [case for _, case, _ in rows] == [
        "two",
        "four &lt;b&gt;",
        "three",
        "one",
        "four &lt;b&gt;",
        "one",
        "two",
        "three",
    ]
    assert [bool(flag) for flag, _, _ in rows] == [True, True] + [False] * 6
    assert "missed" in rows[0][2]
    assert rows[-1][2].count("\N{EN DASH}") == 4


def test_best_median_and_worst_case_are_shown(page: str) -> None:
    titles = re.findall(r"<h3>(\w+): ([^<]*) <span", page)
    assert titles == [("Best", "one"), ("Median", "two"), ("Worst", "four &lt;b&gt;")]
    shown = pictures(page)
    assert len(shown) == 3
    for png in shown:
        width, height = struct.unpack(">II", png[16:24])
        assert width > 1000
        assert height > 200
    assert "Oblique volume" in page


def test_same_run_gives_the_same_bytes(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert not list(run.glob(".*"))


def test_without_validation_cases(run: Path) -> None:
    (run / "validation.json").unlink()
    split = {"labeled": ["a"], "unlabeled": [], "val": [], "test": []}
    (run / "split.json").write_text(json.dumps(split))
    text = visible(write_report(run).read_text(encoding="utf-8"))
    assert "no validation cases" in text
    assert "95HD" not in text
    assert "Seed 7" in text


def test_moved_data_set_leaves_tables_and_a_note(run: Path) -> None:
    (run.parent / "dataset").rename(run.parent / "elsewhere")
    page = write_report(run).read_text(encoding="utf-8")
    assert not pictures(page)
    assert "No pictures, because the data set cannot be read" in page
    assert "Kidney &lt;left&gt;" in page  # known from the run's plan
    assert "60.0" in page


def test_missing_prediction_spares_the_other_pictures(run: Path) -> None:
    (run / "validation" / "one.nii.gz").unlink()
    page = write_report(run).read_text(encoding="utf-8")
    assert len(pictures(page)) == 2
    assert "No picture: " in page


@pytest.mark.parametrize("kept", [1, 2])
def test_few_cases(run: Path, kept: int) -> None:
    scores = SCORES | {"cases": SCORES["cases"][: 2 * kept]}  # type: ignore[index]
    (run / "validation.json").write_text(json.dumps(scores))
    page = write_report(run).read_text(encoding="utf-8")
    titles = re.findall(r"<h3>(\w+): ([^<]*) <span", page)
    assert titles == ([("Only", "one")] if kept == 1 else [("Best", "one"), ("Worst", "two")])


def test_log_with_one_row(run: Path) -> None:
    (run / "log.csv").write_text("\n".join(LOG.splitlines()[:2]) + "\n")
    assert "Iterations 1" in visible(write_report(run).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("split.json", None, "not a run folder"),
        ("config.yaml", "a: [", "config.yaml"),
        ("versions.json", "[1]", "versions.json"),
        ("validation.json", '{"cases": []}', "validation.json"),
        ("log.csv", "iteration,loss\n", "log.csv"),
        ("log.csv", "iteration,loss\nx,1\n", "log.csv"),
    ],
)
def test_broken_runs_are_refused(run: Path, name: str, content: str | None, message: str) -> None:
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises(InputError, match=message):
        write_report(run)
    assert not (run / "report.html").exists()


def test_missing_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run folder"):
        write_report(tmp_path / "absent")
