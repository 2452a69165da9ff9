"""Where segmentations lie: on their scan, in every program that opens both."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from dcamt.data.volume import read_image, read_label, write_volume

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (18, 20, 16)
TILT = np.tan(np.radians(15))


def scan(seed: int = 0) -> np.ndarray:
    """Noise around a bright ball."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    ball = np.linalg.norm(grid - (9, 11, 8), axis=-1) < 6
    return np.rint(np.random.default_rng(seed).normal(300, 60, SHAPE) + 300 * ball).astype(np.int16)


def turned(degrees: float, origin: tuple[float, float, float]) -> np.ndarray:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:2, :2] = (cosine, -sine), (sine, cosine)
    affine[:3, 3] = origin
    return affine


def tilted() -> np.ndarray:
    """Slices of a gantry that leans by 15 degrees: each lies further along than the one below."""
    affine = np.diag([0.9, 0.9, 2.0, 1.0])
    affine[1, 2] = 2 * TILT
    affine[:3, 3] = -20, 30, 10
    return affine


def nifti(path: Path, sform: np.ndarray, code: int, qform: np.ndarray, qcode: int, unit="mm"):
    image = nib.Nifti1Image(scan(), sform)
    image.set_sform(sform, code)
    image.set_qform(qform, qcode)
    image.header.set_xyzt_units(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def itk_corners(path: Path) -> np.ndarray:
    """The corners in mm (RAS+), by SimpleITK's own reader."""
    image = SimpleITK.ReadImage(str(path))
    found = []
    for corner in np.ndindex(2, 2, 2):
        index = [int(i * (n - 1)) for i, n in zip(corner, SHAPE, strict=True)]
        found.append(image.TransformIndexToPhysicalPoint(index))
    return np.array(found) * (-1, -1, 1)


def corners(affine: np.ndarray) -> np.ndarray:
    index = [[i * (n - 1) for i, n in zip(c, SHAPE, strict=True)] for c in np.ndindex(2, 2, 2)]
    return np.array([(affine @ [*one, 1])[:3] for one in index])


SCANS = {
    "turned against each other": (turned(20, (5, -7, 9)), 4, turned(0, (1, 1, 1)), 1, "mm"),
    "alike": (turned(8, (5, 6, 7)), 2, turned(8, (5, 6, 7)), 1, "mm"),
    "in microns": (np.diag([900.0, 900, 900, 1]), 1, np.diag([900.0, 900, 900, 1]), 1, "micron"),
    "in metres": (np.diag([1e-3, 1e-3, 1e-3, 1]), 1, np.diag([1e-3, 1e-3, 1e-3, 1]), 1, "meter"),
}


@pytest.mark.parametrize("name", SCANS)
def test_all_that_predict_writes_lies_on_a_nifti_scan(cli, tiny_run, tmp_path, name) -> None:
    *forms, unit = SCANS[name]
    source = nifti(tmp_path / "a.nii.gz", *forms, unit)
    code, _, err = cli("predict", tiny_run, source, "--out", tmp_path / "out", "--probabilities",
                       "--uncertainty", "--quiet")  # fmt: skip
    assert (code, err) == (0, "")
    written = list((tmp_path / "out").rglob("*.nii.gz"))
    assert len(written) == 5
    mm = np.diag([{"micron": 1e-3, "meter": 1e3}.get(unit, 1)] * 3 + [1])
    for path in written:
        header = nib.load(path).header
        np.testing.assert_allclose(header.get_sform(), mm @ forms[0], atol=1e-4)
        np.testing.assert_allclose(header.get_qform(), mm @ forms[2], atol=1e-4)
        assert (int(header["sform_code"]), int(header["qform_code"])) == (forms[1], forms[3])
        np.testing.assert_allclose(itk_corners(path), itk_corners(source), atol=1e-3)


def test_a_tilted_series_is_refused_as_nifti_and_right_in_other_formats(
    cli, tiny_run, tmp_path, write_series, monkeypatch
) -> None:
    folder = write_series(tmp_path / "scan", scan(), tilted())
    out = tmp_path / "out"
    with monkeypatch.context() as patch:  # before anything is computed
        patch.setattr("dcamt.inference.predict.to_network", None)
        code, _, err = cli("predict", tiny_run, folder, "--out", out, "--probabilities", "--quiet")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "15 degrees off a right angle" in err
    assert "--format nrrd or mha" in err
    assert not list(out.rglob("*.nii.gz"))
    for ending in ("nrrd", "mha"):  # the first in the very same folder
        out = out if ending == "nrrd" else tmp_path / ending
        code, _, err = cli("predict", tiny_run, folder, "--out", out, "--format", ending, "-q",
                           "--probabilities", "--uncertainty")  # fmt: skip
        assert (code, err) == (0, "")
        written = list(out.rglob(f"*.{ending}"))
        assert len(written) == 5
        for path in written:
            np.testing.assert_allclose(itk_corners(path), corners(tilted()), atol=1e-3)


def test_a_tilted_scan_does_not_keep_the_others_from_being_segmented(
    cli, tiny_run, tmp_path, write_series
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    write_series(scans / "a", scan(), tilted())
    write_volume(scans / "b.nrrd", scan(1), np.eye(4))
    code, _, err = cli("predict", tiny_run, scans, "--out", out, "--quiet")
    assert (code, "degrees off" in err) == (2, True)
    assert [path.name for path in out.glob("*.nii.gz")] == ["b.nii.gz"]


def test_a_run_on_tilted_series_segments_and_shows_its_validation_cases(
    cli, tmp_path, write_series, tiny
) -> None:
    """Its own segmentations are written as NRRD, which holds their place."""
    data = tmp_path / "data"
    for case in "abcde":
        write_series(data / "images" / case, scan(ord(case)), tilted())
        if case in "abe":
            write_volume(data / "labels" / f"{case}.nrrd", scan(ord(case)) > 480, tilted())
    split = {"labeled": ["a", "b"], "unlabeled": ["c", "d"], "val": ["e"]}
    (data / "splits.json").write_text(json.dumps(split))
    run, sets = tmp_path / "run", [part for value in tiny for part in ("--set", value)]
    code, _, err = cli("train", data, "--out", run, "--splits", data / "splits.json", "-q", *sets)
    assert (code, err) == (0, "")
    assert [path.name for path in (run / "validation").glob("*.*")] == ["e.nrrd"]
    scores = json.loads((run / "validation.json").read_text())
    assert {row["case"] for row in scores["cases"]} == {"e"}
    assert "data:image/png" in (run / "report.html").read_text()


def test_labels_along_other_axes_train_and_score_as_the_same_labels(cli, tmp_path, tiny) -> None:
    """Labels of one data set lie along flipped axes: plan, weights and scores are the same."""
    split = {"labeled": ["a", "b"], "unlabeled": ["c", "d"], "val": ["e"]}
    scores = []
    for name, code in (("same", None), ("turned", "PLS")):
        data = tmp_path / name
        for case in "abcde":
            affine = turned(12, (5, 6, 7))
            write_volume(data / "images" / f"{case}.nii.gz", scan(ord(case)), affine)
            if case in "abe":
                path = data / "labels" / f"{case}.nii.gz"
                write_volume(path, (scan(ord(case)) > 480).astype(np.uint8), affine)
                if code:
                    label = nib.load(path)
                    axes = nib.orientations.axcodes2ornt(code)
                    nib.save(nib.Nifti1Image(np.asarray(label.dataobj), label.affine)
                             .as_reoriented(nib.orientations.ornt_transform(
                                 nib.io_orientation(label.affine), axes)), path)  # fmt: skip
        (data / "splits.json").write_text(json.dumps(split))
        run, sets = tmp_path / f"run-{name}", [p for value in tiny for p in ("--set", value)]
        assert cli("inspect", data)[0] == 0
        result = cli("train", data, "--out", run, "--splits", data / "splits.json", "-q", *sets)
        assert (result[0], result[2]) == (0, "")
        found = json.loads((run / "validation.json").read_text())
        scores.append([{k: v for k, v in row.items() if k != "file"} for row in found["cases"]])
        segmented = run / "validation" / "e.nii.gz"
        assert read_label(segmented).shape == read_image([data / "images/e.nii.gz"]).shape
    assert scores[0] == scores[1]


def test_channels_without_dataset_json_are_counted_in_the_scans(cli, tmp_path, tiny) -> None:
    data = tmp_path / "data"
    for case in "abcd":
        values = np.stack([scan(ord(case)), scan(ord(case)) * 2], -1).astype(np.float32)
        (data / "images").mkdir(parents=True, exist_ok=True)
        if case == "b":  # as ITK has them: X, Y, Z, 1, C
            values = values[:, :, :, None]
        nib.save(nib.Nifti1Image(values, np.eye(4)), data / "images" / f"{case}.nii.gz")
        if case in "ab":
            write_volume(data / "labels" / f"{case}.nii.gz", scan(ord(case)) > 480, np.eye(4))
    run, sets = tmp_path / "run", [part for value in tiny for part in ("--set", value)]
    code, out, _ = cli("inspect", data)
    assert (code, "channels channel_0, channel_1" in " ".join(out.split())) == (0, True)
    sets += ["--set", "data.val_fraction=0"]
    code, _, err = cli("train", data, "--out", run, "-q", *sets)
    assert (code, err) == (0, "")
    assert "channel_1" in (run / "config.yaml").read_text()
    code, _, err = cli("predict", run, data / "images", "--out", tmp_path / "out", "-q")
    assert (code, err) == (0, "")
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 4

    nib.save(nib.Nifti1Image(scan(), np.eye(4)), data / "images" / "d.nii.gz")
    for command in (("inspect", data), ("train", data, "--out", tmp_path / "other", *sets)):
        code, out, err = cli(*command)
        assert code != 0
        words = " ".join((out + err).split())
        assert "the number of channels is 1, but" in words
