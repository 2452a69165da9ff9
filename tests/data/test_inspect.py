"""Looking over a data set: numbers, problems, rendering."""

import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from dcamt.data.inspect import Inspection, inspect, render
from dcamt.errors import InputError

GRID = np.array([[-0.7, 0, 0, 30], [0, 0.7, 0, -20], [0, 0, 1.5, 10], [0, 0, 0, 1]])
DESCRIPTION = {
    "name": "Toy",
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "liver", "2": "tumour"},
}


def save(path: Path, array: np.ndarray, affine: np.ndarray = GRID) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(6, 5, 4)).astype(np.float32)


def label(*values: int) -> np.ndarray:
    array = np.zeros((6, 5, 4), np.uint8)
    array.flat[: len(values)] = values
    return array


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three labelled cases a, b, c and the unlabelled u, without a problem."""
    for seed, name in enumerate("abcu"):
        save(tmp_path / f"imagesTr/{name}.nii.gz", image(seed))
    for name in "abc":
        save(tmp_path / f"labelsTr/{name}.nii.gz", label(1, 1, 2))
    (tmp_path / "dataset.json").write_text(json.dumps(DESCRIPTION))
    return tmp_path


def shown(inspection: Inspection, all_cases: bool = False) -> str:
    text = io.StringIO()
    Console(width=120, file=text).print(render(inspection, all_cases))
    return text.getvalue()


def test_good_data_set(root: Path) -> None:
    inspection = inspect(root)
    assert inspection.problems == []
    first = inspection.cases[0]
    assert (first.name, first.use, first.size) == ("a", "labelled", (6, 5, 4))
    assert first.spacing == pytest.approx((0.7, 0.7, 1.5))
    assert first.label_voxels == {0: 117, 1: 2, 2: 1}
    (intensity,) = first.intensities
    low, high = np.percentile(image(), (1, 99))
    assert intensity.minimum == image().min()
    assert intensity.maximum == image().max()
    assert intensity.mean == pytest.approx(image().mean())
    assert (intensity.percentile_1, intensity.percentile_99) == pytest.approx((low, high))
    assert (inspection.cases[3].use, inspection.cases[3].label_voxels) == ("unlabelled", None)


def test_json(root: Path) -> None:
    content = json.loads(json.dumps(inspect(root).to_dict(), allow_nan=False))
    assert content["classes"] == ["background", "liver", "tumour"]
    assert content["cases"][1]["label_voxels"] == {"0": 117, "1": 2, "2": 1}
    assert content["errors"] == content["warnings"] == []


def test_rendered_tables(root: Path) -> None:
    text = shown(inspect(root))
    assert "Toy: 4 cases (3 labelled, 1 unlabelled, 0 validation), channels CT" in text
    assert "1.667%" in text  # 2 of 120 voxels are liver
    assert "6 x 5 x 4" in text
    assert "No problems found." in text


def test_many_cases_are_shown_on_request(root: Path) -> None:
    for i in range(20):
        save(root / f"imagesTr/n{i:02d}.nii.gz", image(i))
    text = shown(inspect(root))
    assert "not shown: 4 of 24 cases" in text
    assert "n19" not in text
    assert "n19" in shown(inspect(root), all_cases=True)


def test_every_problem_is_found(root: Path) -> None:
    holed = image()
    holed[0, 0, 0] = np.nan
    (root / "imagesTr/text.nii.gz").write_text("no image")
    save(root / "imagesTr/nan.nii.gz", holed)
    save(root / "imagesTr/two.nii.gz", np.stack([image(), image()], -1))
    save(root / "labelsTr/a.nii.gz", label(1, 7))
    save(root / "labelsTr/b.nii.gz", label(1)[:-1])
    save(root / "labelsTr/c.nii.gz", label(1) * 0.5)
    save(root / "imagesTr/moved.nii.gz", image())
    save(root / "labelsTr/moved.nii.gz", label(1), GRID @ np.diag([1, 1, 2, 1]))
    save(root / "labelsTr/lonely.nii.gz", label(1))
    inspection = inspect(root)
    expected = [
        "lonely.nii.gz: the label has no image",
        "labelsTr/a.nii.gz: the label holds 7",
        "labelsTr/b.nii.gz: the label has 5 x 5 x 4 voxels",
        "labelsTr/c.nii.gz: label values that are not whole numbers in 1 of 120",
        "labelsTr/moved.nii.gz: the label lies up to",
        "nan.nii.gz: NaN or infinite intensities (as float32) in 1 of 120",
        "text.nii.gz: cannot be read",
        "two.nii.gz: the number of channels is 2",
    ]
    assert len(inspection.errors) == len(expected)
    for error, part in zip(inspection.errors, expected, strict=True):
        assert part in error
    (warning,) = inspection.warnings
    assert "no labelled training case shows class 2 (tumour)" in warning
    text = shown(inspection)
    assert text.count("error: ") == len(expected)
    assert "not declared" in text


def test_odd_cases_are_remarked_together(root: Path) -> None:
    flat = GRID @ np.diag([1, 1, 4, 1])
    for name in "ab":
        save(root / f"imagesTr/{name}.nii.gz", image(), flat)
        save(root / f"labelsTr/{name}.nii.gz", label(1, 2), flat)
    save(root / "imagesTr/c.nii.gz", np.ones((6, 5, 4), np.uint8))
    save(root / "labelsTr/c.nii.gz", label(), np.eye(4))
    save(root / "imagesTr/u.nii.gz", image(), np.diag([1000.0, 1000, 1000, 1]))
    inspection = inspect(root)
    assert len(inspection.errors) == 1  # c: image and label lie apart
    remarks = "\n".join(inspection.warnings)
    assert "a, b (2 of 4 cases): voxels are more than 3 times longer" in remarks
    assert "c (1 of 4 cases): all intensities of a channel are equal" in remarks
    assert "c (1 of 4 cases): the label holds background only" in remarks
    assert "u (1 of 4 cases): the voxel spacing lies outside" in remarks


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.0, -1, 1, 1])])
def test_lost_geometry(root: Path, affine: np.ndarray) -> None:
    for kind, array in (("images", image()), ("labels", label(1, 2))):
        save(root / f"{kind}Tr/a.nii.gz", array, affine)
    (warning,) = inspect(root).warnings
    assert "a (1 of 4 cases): spacing 1 x 1 x 1 mm and origin 0" in warning

    real = np.eye(4)
    real[:3, 3] = 1
    save(root / "imagesTr/u.nii.gz", image(), real)
    assert inspect(root).warnings == []


def test_plain_layout(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / f"images/{name}.nii.gz", image())
        save(tmp_path / f"labels/{name}.nii.gz", label(1, 2))
    assert inspect(tmp_path).dataset.classes == ("background", "class_1", "class_2")
    save(tmp_path / "labels/b.nii.gz", label(1, 4))
    (error,) = inspect(tmp_path).errors
    assert "the labels hold the values [0, 1, 2, 4]" in error


def test_no_label_at_all(tmp_path: Path) -> None:
    save(tmp_path / "images/a.nii.gz", image())
    assert "no case has a label file" in inspect(tmp_path).errors[0]
    assert "1 unlabelled" in shown(inspect(tmp_path))


def test_hidden_labels_are_not_opened(root: Path) -> None:
    (root / "labelsTr/b.nii.gz").write_bytes(b"poison")
    (root / "imagesTr/u.nii.gz").write_bytes(b"poison")
    splits = root / "splits.json"
    splits.write_text(json.dumps({"labeled": ["a"], "unlabeled": ["b"], "val": ["c"]}))
    inspection = inspect(root, splits)
    assert inspection.problems == []
    assert [(c.name, c.use) for c in inspection.cases] == [
        ("a", "labelled"),
        ("b", "unlabelled"),
        ("c", "validation"),
    ]
    assert len(inspect(root).errors) == 2


def test_brackets_in_names_are_shown(root: Path) -> None:
    save(root / "imagesTr/[red]x.nii.gz", image())
    assert "[red]x" in shown(inspect(root))


def test_long_names_are_whole_at_80_columns(root: Path, monkeypatch, cli) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"sub-hospitalname_ses-baseline_acq-mprage_run-{i:03}_T1w" for i in range(21)]
    for number, name in enumerate(names):
        save(root / f"imagesTr/{name}.nii.gz", image(number))
    code, text, _ = cli("inspect", root)
    assert code == 0
    lines = text.splitlines()
    for name in names[:17]:  # of 25 cases, 20 are shown, and three have short names
        line = lines[lines.index(name) + 1]
        assert "unlabelled, 6 x 5 x 4 voxels of 0.7 x 0.7 x 1.5 mm" in line
    assert names[17] not in text
    assert "not shown: 5 of 25 cases" in text


def test_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="known layout"):
        inspect(tmp_path)


def test_real_data(real_data: Path) -> None:
    folder = real_data / "hippocampus"
    inspection = inspect(folder, folder / "splits.json")
    assert inspection.problems == []
    assert "8 labelled, 152 unlabelled, 40 validation" in shown(inspection)
