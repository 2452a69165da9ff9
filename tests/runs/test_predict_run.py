"""Where segmentations go, and that those of one folder have one origin."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from dcamt import api
from dcamt.data.volume import read_image, read_label, write_volume
from dcamt.errors import InputError
from dcamt.files import LOCK, alone
from dcamt.inference.predict import DICOM_SEG, Extras, extra_files
from dcamt.runs.predict import RECORD
from dcamt.runs.summary import CSV, JSON

BESIDE = (RECORD, CSV, JSON, LOCK)
"""Files of a folder of segmentations beside those of each scan."""


@pytest.fixture
def scans(tmp_path):
    """Two scans of noise."""
    for seed, name in enumerate("ab"):
        values = np.random.default_rng(seed).normal(300, 60, (20, 18, 16)).astype(np.float32)
        write_volume(tmp_path / "scans" / f"{name}.nii.gz", values, np.eye(4))
    return tmp_path / "scans"


@pytest.fixture
def other_run(tiny_run, tmp_path, phantoms, tiny):
    """Of the same settings and another seed."""
    settings = [*tiny, "seed=7"]
    return api.train(
        phantoms, tmp_path / "other", splits=phantoms / "splits.json", set=settings, quiet=True
    )


def content(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ----------------------------------------------------------------------------------- one origin


def test_segmentations_of_other_weights_are_not_mixed(tiny_run, other_run, scans, tmp_path):
    out = tmp_path / "out"
    api.predict(tiny_run, scans / "a.nii.gz", out, quiet=True)
    before = content(out)
    for input in (scans, scans / "b.nii.gz"):
        for resume in (True, False):
            if input == scans and not resume:
                continue  # refused as a.nii.gz exists
            with pytest.raises(InputError, match="made by other weights"):
                api.predict(other_run, input, out, resume=resume, quiet=True)
    assert content(out) == before
    api.predict(tiny_run, scans, out, resume=True, quiet=True)
    after = content(out)
    assert set(after) == {"a.nii.gz", "b.nii.gz", "a.json", "b.json", *BESIDE}
    assert after["a.nii.gz"] == before["a.nii.gz"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overlap": 0.25}, "overlap"),
        ({"stride": (8, 8, 8)}, r"stride = None, not \[8, 8, 8\]"),
        ({"weighting": "constant"}, "weighting"),
        ({"largest_component": True}, "largest_component"),
        ({"format": "nrrd"}, r"format = \.nii\.gz, not \.nrrd"),
    ],
)
def test_segmentations_of_other_settings_are_not_mixed(tiny_run, scans, tmp_path, options, words):
    out = tmp_path / "out"
    api.predict(tiny_run, scans / "a.nii.gz", out, quiet=True)
    before = content(out)
    with pytest.raises(InputError, match=words):
        api.predict(tiny_run, scans / "b.nii.gz", out, quiet=True, **options)
    assert content(out) == before


def test_another_plan_of_the_same_weights_counts_as_other_weights(tiny_run, scans, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(tiny_run, run)
    api.predict(run, scans / "a.nii.gz", out, quiet=True)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("orientation: RAS", "orientation: LPS"))
    with pytest.raises(InputError, match="other weights"):
        api.predict(run, scans / "b.nii.gz", out, quiet=True)


def test_a_folder_where_another_is_at_work_is_refused(tiny_run, scans, tmp_path):
    out = tmp_path / "out"
    with alone(out), pytest.raises(InputError, match="another dcamt is at work there"):
        api.predict(tiny_run, scans, out, quiet=True)
    assert set(content(out)) == {LOCK}


def test_a_record_that_is_somebody_elses_stays(tiny_run, scans, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for text in ('{"mine": 1}', "mine"):
        (out / RECORD).write_text(text)
        with pytest.raises(InputError, match=RECORD):
            api.predict(tiny_run, scans, out, quiet=True)
        assert content(out) == {RECORD: text.encode()}


def test_where_nothing_could_be_segmented_other_weights_may_be_tried(
    tiny_run, other_run, scans, tmp_path
):
    broken, out = tmp_path / "broken.nii.gz", tmp_path / "out"
    broken.write_bytes((scans / "a.nii.gz").read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        api.predict(other_run, broken, out, quiet=True)
    assert set(content(out)) == {LOCK}
    api.predict(tiny_run, scans, out, quiet=True)
    assert set(content(out)) == {"a.nii.gz", "b.nii.gz", "a.json", "b.json", *BESIDE}


def test_the_record_says_what_made_them(tiny_run, scans, tmp_path):
    api.predict(tiny_run, scans, tmp_path / "out", quiet=True)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["weights"] == "last"
    assert record["format"] == ".nii.gz"
    assert len(record["sha256"]) == 64


def test_a_case_is_finished_when_all_that_is_asked_for_is_there(tiny_run, scans, tmp_path):
    out = tmp_path / "out"
    api.predict(tiny_run, scans, out, quiet=True)
    corrected = nib.load(out / "a.nii.gz")
    nib.save(
        nib.Nifti1Image(np.ones(corrected.shape, np.uint8), corrected.affine), out / "a.nii.gz"
    )
    api.predict(tiny_run, scans, out, uncertainty=True, resume=True, quiet=True)
    assert len(list((out / "uncertainty").iterdir())) == 4
    assert read_label(out / "a.nii.gz").array.all()


def test_maps_that_exist_are_refused_and_stay(tiny_run, scans, tmp_path):
    mine = tmp_path / "out" / "uncertainty" / "a_entropy.nii.gz"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    for resume in (False, True):
        with pytest.raises(InputError, match=r"a_entropy\.nii\.gz: exists already"):
            api.predict(
                tiny_run, scans, tmp_path / "out", uncertainty=True, resume=resume, quiet=True
            )
    assert content(tmp_path / "out") == {"a_entropy.nii.gz": b"mine"}


# ------------------------------------------------------------------------------------- one file


@pytest.mark.parametrize("name", ["seg.nii.gz", "deep/seg.nrrd", "seg.mha", "seg.h5"])
def test_one_scan_goes_into_the_file_that_is_named(cli, tiny_run, scans, tmp_path, name):
    out = tmp_path / "out" / name
    code, _, err = cli("predict", tiny_run, scans / "a.nii.gz", "--out", out, "--uncertainty", "-q")
    assert (code, err) == (0, "")
    assert read_label(out).array.shape == (20, 18, 16)
    ending = name.partition(".")[2]
    assert set(content(out.parent)) == {
        out.name, f"seg_entropy.{ending}", f"seg_disagreement.{ending}"
    }  # fmt: skip
    before = content(out.parent)
    for more in ([], ["--resume"]):
        code, _, err = cli("predict", tiny_run, scans / "b.nii.gz", "--out", out, "-q", *more)
        assert (code, err.count("\n")) == (2, 1)
        assert "exists already" in err
    assert content(out.parent) == before


def test_a_segmentation_may_lie_beside_its_scan(tiny_run, scans, tmp_path):
    (path,) = api.predict(tiny_run, scans / "a.nii.gz", scans / "seg.nii.gz", quiet=True)
    assert path == scans / "seg.nii.gz"
    assert set(content(scans)) == {"a.nii.gz", "b.nii.gz", "seg.nii.gz"}


def test_a_series_goes_into_one_file_but_not_among_its_slices(tiny_run, tmp_path, write_series):
    values = np.random.default_rng(0).integers(0, 500, (20, 18, 16)).astype(np.int16)
    series = write_series(tmp_path / "series", values, np.eye(4))
    before = content(series)
    for out in (series / "seg.nii.gz", series / "out", series):
        with pytest.raises(InputError, match="folder of the scans"):
            api.predict(tiny_run, series, out, quiet=True)
    assert content(series) == before
    (path,) = api.predict(tiny_run, series, tmp_path / "seg.nii.gz", quiet=True)
    assert read_label(path).array.shape == (20, 18, 16)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("x.nii.gz", {}, "is a folder of scans; name a folder"),
        ("x.nii", {}, r"no segmentation is written as \.nii"),
        ("x.mhd", {}, r"no segmentation is written as \.mhd"),
        ("x.dcm", {}, "name a folder; --dicom-seg writes"),
        ("x.IMA", {}, "name a folder; --dicom-seg writes"),
        ("x.mgz", {}, r"no segmentation is written as \.mgz"),
        ("x.nrrd", {"format": "mha"}, "is no mha by its name"),
        ("x", {"format": "png"}, "'png' is unknown"),
    ],
)
def test_a_name_that_does_not_fit_is_refused(tiny_run, scans, tmp_path, name, options, words):
    input = scans if "is a folder" in words else scans / "a.nii.gz"
    with pytest.raises(InputError, match=words):
        api.predict(tiny_run, input, tmp_path / name, quiet=True, **options)
    assert not (tmp_path / name).exists()


def test_what_is_announced_is_what_is_written(tiny_run, phantoms, tmp_path):
    scan, out = phantoms / "imagesTr" / "phantom_000.nii.gz", tmp_path / "out" / "seg.nrrd"
    api.predict(tiny_run, scan, out, probabilities=True, uncertainty=True, quiet=True)
    classes = ("background", "atrium")
    files = extra_files(out, Extras(probabilities=True, uncertainty=True), classes)
    assert sorted(path for group in files.values() for path in group) == sorted(
        path for path in out.parent.rglob("*.nrrd") if path != out
    )
    assert extra_files(out, Extras(dicom_seg=True), classes) == {
        DICOM_SEG: [out.parent / DICOM_SEG / "seg.dcm"]
    }


def test_a_training_maps_the_entropy_of_its_validation_cases(tiny_run, phantoms, tmp_path):
    (case,) = (path.name for path in (tiny_run / "validation").glob("*.nii.gz"))
    name = case.removesuffix(".nii.gz")
    maps = tiny_run / "validation" / "uncertainty"
    assert [path.name for path in maps.iterdir()] == [f"{name}_entropy.nii.gz"]
    out = tmp_path / "out" / case
    api.predict(tiny_run, phantoms / "imagesTr" / case, out, uncertainty=True, quiet=True)
    again = read_image([out.parent / "uncertainty" / f"{name}_entropy.nii.gz"]).array
    found = read_image([maps / f"{name}_entropy.nii.gz"]).array
    np.testing.assert_allclose(found, again, atol=1e-5)
    assert 0 <= found.min() < found.max() <= 1


# ------------------------------------------------------------------------------------ long names


def test_a_name_too_long_for_its_maps_does_not_keep_the_others(cli, tiny_run, scans, tmp_path):
    long = "x" * 240
    (scans / "a.nii.gz").rename(scans / f"{long}.nii.gz")
    out = tmp_path / "out"
    code, _, err = cli("predict", tiny_run, scans, "--out", out, "--probabilities", "-q")
    assert (code, err.count("\n")) == (2, 1)
    assert "longer than the 255 bytes" in err
    assert (out / "b.nii.gz").exists()
    assert not (out / f"{long}.nii.gz").exists()
    code, _, err = cli("predict", tiny_run, scans, "--out", out, "--resume", "-q")
    assert (code, err) == (0, "")
    assert (out / f"{long}.nii.gz").exists()


def test_a_name_too_long_for_the_format_does_not_keep_the_others(tiny_run, scans, tmp_path):
    long = f"{'x' * 250}.mha"
    write_volume(scans / long, np.ones((20, 18, 16), np.float32), np.eye(4))
    with pytest.raises(InputError, match="longer than"):
        api.predict(tiny_run, scans, tmp_path / "out", quiet=True)
    assert set(content(tmp_path / "out")) == {"a.nii.gz", "b.nii.gz", "a.json", "b.json", *BESIDE}
