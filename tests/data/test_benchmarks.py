"""The two published data sets, from small sources in their exact layouts, voxel by voxel."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from dcamt.config import load_config
from dcamt.data.benchmarks import PRESETS
from dcamt.data.dataset import read_dataset
from dcamt.data.inspect import inspect
from dcamt.data.volume import read_image, read_label, write_volume

RECIPES = Path(__file__).parents[2] / "recipes"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
LA_AFFINE = LPS @ np.diag([0.625, 0.625, 0.625, 1.0])


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def left_atria(tmp_path: Path) -> Path:
    """Three scans: a box in the middle, one at an edge, and one wider than the patch."""
    boxes = {
        "MIDDLE0": (slice(70, 100), slice(60, 90), slice(3, 8)),
        "EDGE000": (slice(0, 12), slice(150, 160), slice(0, 10)),
        "WIDE000": (slice(20, 150), slice(15, 140), slice(2, 9)),
    }
    rng = np.random.default_rng(0)
    for case, box in boxes.items():
        scan = rng.integers(0, 256, (180, 160, 10)).astype(np.uint8)
        atrium = np.zeros(scan.shape, np.uint8)
        atrium[box] = 255
        write_volume(tmp_path / "source" / case / "lgemri.nrrd", scan, LA_AFFINE)
        write_volume(tmp_path / "source" / case / "laendo.nrrd", atrium, LA_AFFINE)
    return tmp_path / "source"


def test_left_atrium_voxel_by_voxel(cli, left_atria: Path, tmp_path: Path) -> None:
    out = tmp_path / "la"
    code, _, err = cli("prepare", "la", left_atria, out, "--quiet")
    assert (code, err) == (0, "")
    margins = []
    for folder in left_atria.iterdir():
        scan = read_image([folder / "lgemri.nrrd"]).array[0].astype(np.float64)
        atrium = read_label(folder / "laendo.nrrd").array == 255
        image = read_image([out / "imagesTr" / f"{folder.name}_0000.nii.gz"])
        label = read_label(out / "labelsTr" / f"{folder.name}.nii.gz")
        # Where the crop lies in the scan is told by its affine.
        start = np.rint(np.linalg.solve(LA_AFFINE, image.affine)[:3, 3]).astype(int)
        crop = tuple(slice(s, s + n) for s, n in zip(start, image.shape, strict=True))
        normal = (scan - scan.mean()) / scan.std()
        np.testing.assert_allclose(image.array[0], normal[crop], atol=1e-5)
        np.testing.assert_array_equal(label.array, atrium[crop])
        np.testing.assert_allclose(image.affine, label.affine)
        np.testing.assert_allclose(image.spacing, 0.625)
        assert label.array.sum() == atrium.sum()  # nothing of it was cut off
        assert crop[2] == slice(0, 10)
        for axis in (0, 1):
            assert crop[axis].stop - crop[axis].start >= 112
            where = np.flatnonzero(atrium.any(tuple({0, 1, 2} - {axis})))
            margins += [where[0] - crop[axis].start, crop[axis].stop - 1 - where[-1]]
        if folder.name == "WIDE000":  # wider than the patch: the margins are those drawn
            assert all(10 <= margin <= 20 for margin in margins[-4:])
            assert len(set(margins[-4:])) > 1
    assert min(margins) == 0  # at the scan's edge


def test_left_atrium_is_a_data_set_that_says_what_it_is(
    cli, left_atria: Path, tmp_path: Path
) -> None:
    out = tmp_path / "la"
    cli("prepare", "la", left_atria, out)
    dataset = read_dataset(out)
    assert [case.name for case in dataset.cases] == ["EDGE000", "MIDDLE0", "WIDE000"]
    assert dataset.classes == ("background", "left_atrium")
    assert "cropped by label" in dataset.name  # shown in every report
    description = json.loads((out / "dataset.json").read_text())
    for text in (
        description["description"],
        json.loads((out / "benchmark.json").read_text())["note"],
    ):
        assert "test scans included, was cropped around the organ by its own label" in text
    assert inspect(out).errors == []


def test_rerun_skips_and_a_foreign_folder_is_refused(cli, left_atria: Path, tmp_path: Path) -> None:
    out = tmp_path / "la"
    assert cli("prepare", "la", left_atria, out)[0] == 0
    whole = files(out)
    (out / "imagesTr" / "EDGE000_0000.nii.gz").unlink()
    (out / "dataset.json").unlink()
    before = (out / "labelsTr" / "WIDE000.nii.gz").stat().st_mtime_ns
    assert cli("prepare", "la", left_atria, out)[0] == 0
    assert files(out) == whole
    assert (out / "labelsTr" / "WIDE000.nii.gz").stat().st_mtime_ns == before

    code, _, err = cli("prepare", "pancreas-nih", left_atria, out)
    assert code == 2
    assert "PANCREAS_0001" in err
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    code, _, err = cli("prepare", "la", left_atria, other)
    assert (code, "exists already" in err) == (2, True)
    assert files(other) == {"thesis.txt": b"years of work"}


def test_a_link_in_the_output_is_refused(cli, left_atria: Path, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "la", tmp_path / "elsewhere"
    cli("prepare", "la", left_atria, out)
    elsewhere.mkdir()
    for path in (out / "labelsTr").iterdir():
        path.unlink()
    (out / "labelsTr").rmdir()
    (out / "labelsTr").symlink_to(elsewhere)
    code, _, err = cli("prepare", "la", left_atria, out)
    assert (code, "is a link" in err) == (2, True)
    assert not list(elsewhere.iterdir())


def spoil_la(source: Path, what: str) -> None:
    folder = source / "MIDDLE0"
    if what == "label missing":
        (folder / "laendo.nrrd").unlink()
    elif what == "label of ones":
        write_volume(folder / "laendo.nrrd", np.ones((180, 160, 10), np.uint8), LA_AFFINE)
    elif what == "empty label":
        write_volume(folder / "laendo.nrrd", np.zeros((180, 160, 10), np.uint8), LA_AFFINE)
    elif what == "constant scan":
        write_volume(folder / "lgemri.nrrd", np.ones((180, 160, 10), np.uint8), LA_AFFINE)
    elif what == "other grid":
        write_volume(folder / "laendo.nrrd", np.zeros((180, 160, 9), np.uint8), LA_AFFINE)
    elif what == "truncated":
        path = folder / "lgemri.nrrd"
        path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("label missing", "laendo.nrrd is missing"),
        ("label of ones", "other values than 0 and 255"),
        ("empty label", "no voxel of the organ"),
        ("constant scan", "all intensities are equal"),
        ("other grid", "180 x 160 x 9"),
        ("truncated", "lgemri.nrrd"),
    ],
)
def test_a_left_atrium_that_is_not_as_distributed(
    cli, left_atria: Path, tmp_path: Path, what: str, words: str
) -> None:
    spoil_la(left_atria, what)
    code, out, err = cli("prepare", "la", left_atria, tmp_path / "la", "--quiet")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert words in err
    assert not (tmp_path / "la" / "dataset.json").exists()


SCAN = LPS @ np.diag([0.5, 0.5, 2.0, 1.0])  # mm; columns to the left, rows to the back, slices up
SHAPE = (120, 100, 40)  # 60 x 50 x 80 mm
BOX = (slice(50, 70), slice(40, 60), slice(15, 25))


def ct_scan() -> np.ndarray:
    """Hounsfield units that grow along all axes, so that a flip or shift shows."""
    x, y, z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    return (4 * x + 3 * y + 2 * z - 500).astype(np.int16)


def pancreas_source(root: Path, write_series, flips: tuple[int, int, int]) -> Path:
    """A collection of one case whose label runs along flipped axes and has origin 0."""
    organ = np.zeros(SHAPE, np.uint8)
    organ[BOX] = 1
    organ[BOX[0].start, BOX[1].start, BOX[2].start - 1] = 1  # no symmetry
    scan = SCAN.copy()
    scan[:3, 3] = (31, -12, 77)
    write_series(
        root / "Pancreas-CT" / "PANCREAS_0001" / "11-24-2015-abdomen" / "Pancreas-18957",
        ct_scan() + 1024, scan, Modality="CT", RescaleIntercept="-1024", RescaleSlope="1",
    )  # fmt: skip
    stored = organ[tuple(slice(None, None, step) for step in flips)]
    affine = SCAN @ np.diag([*flips, 1])
    (root / "TCIA_pancreas_labels-02-05-2017").mkdir(parents=True)
    path = root / "TCIA_pancreas_labels-02-05-2017" / "label0001.nii.gz"
    nib.save(nib.Nifti1Image(np.ascontiguousarray(stored), affine), path)
    return root


@pytest.mark.parametrize("flips", [(1, -1, 1), (-1, -1, 1), (1, 1, -1), (1, 1, 1)])
def test_pancreas_voxel_by_voxel(cli, tmp_path: Path, write_series, flips) -> None:
    source, out = pancreas_source(tmp_path / "source", write_series, flips), tmp_path / "out"
    code, _, err = cli("prepare", "pancreas-nih", source, out, "--quiet")
    assert (code, err) == (0, "")
    image = read_image([out / "imagesTr" / "PANCREAS_0001_0000.nii.gz"])
    label = read_label(out / "labelsTr" / "PANCREAS_0001.nii.gz")
    np.testing.assert_allclose(image.spacing, 1)
    np.testing.assert_allclose(image.affine, label.affine)
    # By the affines alone: what lies at each voxel's place in the original series?
    original = read_image([source / "Pancreas-CT/PANCREAS_0001/11-24-2015-abdomen/Pancreas-18957"])
    np.testing.assert_array_equal(original.array[0], ct_scan())
    grid = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), -1)
    to_scan = np.linalg.solve(original.affine, image.affine)
    places = np.moveaxis(grid @ to_scan[:3, :3].T + to_scan[:3, 3], -1, 0)
    wanted = ndimage.map_coordinates(
        np.clip(original.array[0], -120, 240), places, order=1, mode="nearest"
    )
    np.testing.assert_allclose(image.array[0], wanted, atol=1e-3)
    assert image.array.min() == -120
    organ = np.zeros(SHAPE, np.float32)
    organ[BOX] = 1
    organ[BOX[0].start, BOX[1].start, BOX[2].start - 1] = 1
    share = ndimage.map_coordinates(organ, places, order=1, mode="nearest")
    np.testing.assert_array_equal(label.array, share >= 0.5)
    # The pancreas is 10 x 10 x 20 voxels of 1 mm; around it are 25, or the edge of the scan.
    assert label.array.sum() == 10 * 10 * 20
    where = [np.flatnonzero(label.array.any(tuple({0, 1, 2} - {a}))) for a in range(3)]
    before = [int(w[0]) for w in where]
    after = [n - 1 - int(w[-1]) for n, w in zip(image.shape, where, strict=True)]
    assert before == [25, 20, 25]
    assert after == [25, 20, 25]


def test_pancreas_sources_that_are_not_as_distributed(cli, tmp_path: Path, write_series) -> None:
    source = pancreas_source(tmp_path / "source", write_series, (1, -1, 1))
    label = source / "TCIA_pancreas_labels-02-05-2017" / "label0001.nii.gz"
    series = source / "Pancreas-CT/PANCREAS_0001/11-24-2015-abdomen/Pancreas-18957"

    def refused(*words: str) -> None:
        code, _, err = cli("prepare", "pancreas-nih", source, tmp_path / "out", "--quiet")
        assert code == 2
        assert len(err.splitlines()) == 1
        assert all(word in err for word in words)

    whole = label.read_bytes()
    nib.save(nib.Nifti1Image(np.ones((100, 120, 40), np.uint8), np.eye(4)), label)
    refused("label0001.nii.gz", "100 x 120 x 40", "120 x 100 x 40")
    label.write_bytes(whole[:100])
    refused("label0001.nii.gz")
    label.unlink()
    refused("label0001.nii.gz is missing")
    label.write_bytes(whole)
    write_series(series.parent / "localizer", ct_scan()[:, :, :3], SCAN)
    refused("PANCREAS_0001", "has 2 folders with DICOM slices")


def test_the_recipes_hold_the_protocol() -> None:
    la = load_config(RECIPES / "left-atrium.yaml")
    pancreas = load_config(RECIPES / "pancreas-nih.yaml")
    for config in (la, pancreas):
        train = config.train
        assert (train.iterations, train.labeled_batch, train.unlabeled_batch) == (6000, 2, 2)
        assert (train.learning_rate, train.momentum, train.weight_decay) == (0.01, 0.9, 1e-4)
        assert [round(at * 6000) for at in train.decay_at] == [2500, 5000]
        assert config.predict.weighting == "constant"
    assert (la.data.patch, la.predict.stride) == ((112, 112, 80), (18, 18, 4))
    assert (pancreas.data.patch, pancreas.predict.stride) == ((96, 96, 96), (16, 16, 16))


def test_a_prepared_left_atrium_trains_by_its_recipe(
    cli, left_atria: Path, tmp_path: Path, tiny: list[str]
) -> None:
    """With everything but the size of the protocol: normalised intensities stay as they are."""
    out, run = tmp_path / "la", tmp_path / "run"
    cli("prepare", "la", left_atria, out)
    sets = [part for value in [*tiny, "predict.stride=[16,16,16]"] for part in ("--set", value)]
    code, _, err = cli("train", out, "--out", run, "--config", RECIPES / "left-atrium.yaml",
                       "--labeled", "2", "--quiet", *sets, "--set", "train.unlabeled_batch=1",
                       "--set", "data.patch=[32,16,16]")  # fmt: skip
    assert (code, err) == (0, "")
    plan = load_config(run / "config.yaml").plan
    assert plan is not None
    assert [how.scheme for how in plan.normalization] == ["none"]
    assert plan.spacing == (0.625, 0.625, 0.625)
    assert "cropped by label" in (run / "report.html").read_text()


def test_presets_of_the_command_line_are_those_there_are() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "dcamt.cli", "prepare", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(name in result.stdout for name in PRESETS)
