"""What `predict` says of a whole folder: volumes, confidence, and what to look at first."""

import csv
import json
import shutil

import numpy as np
import pytest

from dcamt import api
from dcamt.data.volume import read_label, write_volume
from dcamt.errors import InputError
from dcamt.records.summary import CALIBRATION
from dcamt.runs.summary import write_summary

SPACING = (0.5, 2.0, 3.0)  # mm
FIT = {
    "exponent": 2.0,
    "look_below": 0.5,
    "always": True,
    "cases": 40,
    "mean_absolute_error": 0.03,
    "rank_correlation": 0.6,
}


@pytest.fixture
def scans(tmp_path):
    """Three scans of noise."""
    for seed, name in enumerate("abc"):
        values = np.random.default_rng(seed).normal(300, 60, (20, 18, 16)).astype(np.float32)
        write_volume(tmp_path / "scans" / f"{name}.nii.gz", values, np.diag([*SPACING, 1]))
    return tmp_path / "scans"


@pytest.fixture
def run(tiny_run, tmp_path):
    """The tiny run with a calibration of one class."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / CALIBRATION).write_text(json.dumps({"classes": [FIT]}))
    return run


@pytest.fixture(scope="module")
def validated_run(tmp_path_factory, phantoms, tiny):
    """A tiny run that kept four of the phantoms' cases to validate with."""
    folder = tmp_path_factory.mktemp("validated")
    shutil.copytree(phantoms, folder / "data")
    data = folder / "data"
    names = sorted(path.name.removesuffix(".nii.gz") for path in (data / "imagesTr").iterdir())
    for name in names:
        label = data / "labelsTr" / f"{name}.nii.gz"
        if not label.exists():  # a ball is what phantoms show
            shape = read_label(data / "imagesTr" / f"{name}.nii.gz").array.shape
            grid = np.indices(shape) - np.array(shape)[:, None, None, None] / 2
            values = ((grid**2).sum(0) < 25).astype(np.uint8)
            write_volume(label, values, np.eye(4))
    splits = {"labeled": names[:1], "unlabeled": names[1:2], "val": names[2:]}
    (folder / "splits.json").write_text(json.dumps(splits))
    settings = [*tiny, "train.validate_every=3"]
    return api.train(data, folder / "run", splits=folder / "splits.json", set=settings, quiet=True)


def rows(out):
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_folder_has_a_line_for_each_structure_of_each_scan(cli, run, scans, tmp_path):
    out = tmp_path / "out"
    assert cli("predict", run, scans, "--out", out)[0] == 0
    found = rows(out)
    assert sorted(row["case"] for row in found) == ["a", "b", "c"]
    for row in found:
        voxels = np.count_nonzero(read_label(out / f"{row['case']}.nii.gz").array == 1)
        assert voxels
        assert float(row["volume_ml"]) == pytest.approx(voxels * 3.0 / 1000, abs=1e-4)
        part = json.loads((out / "summary" / f"{row['case']}.json").read_text())
        (of_class,) = part["classes"]
        assert 0 < of_class["expected_dice"] < 1
        assert float(row["confidence"]) == pytest.approx(of_class["expected_dice"] ** 2, abs=1e-4)
        assert (row["class"], row["class_name"]) == ("1", "atrium")
        assert row["flag"] == ("look" if float(row["confidence"]) < 0.5 else "")
    values = [float(row["confidence"]) for row in found]
    assert values == sorted(values)
    record = json.loads((out / "summary.json").read_text())
    assert [row["confidence"] for row in record["rows"]] == values
    assert "nine of ten validation cases" in record["rule"]
    assert record["calibration"] == {"classes": [FIT]}


def test_how_many_are_to_be_looked_at_is_told(cli, run, scans, tmp_path):
    (run / CALIBRATION).write_text(json.dumps({"classes": [{**FIT, "look_below": 1.0}]}))
    _, _, err = cli("predict", run, scans, "--out", tmp_path / "out")
    assert "summary.csv: 3 of 3 cases to look at" in err


def test_training_calibrates_on_its_validation_cases(cli, validated_run, scans, tmp_path):
    text = (validated_run / CALIBRATION).read_text()
    (fitted,) = json.loads(text)["classes"]
    assert fitted["cases"] == 4
    assert 0 <= fitted["mean_absolute_error"] <= 1
    assert "phantom" not in text
    code, _, err = cli("predict", validated_run, scans, "--out", tmp_path / "out")
    assert code == 0
    assert "rests on 4 validation cases alone" in err
    assert all(row["confidence"] for row in rows(tmp_path / "out"))


def test_a_run_without_a_calibration_says_how_to_get_one(cli, validated_run, scans, tmp_path):
    run, out = tmp_path / "old", tmp_path / "out"
    shutil.copytree(validated_run, run)
    (run / CALIBRATION).unlink()
    code, _, err = cli("predict", run, scans, "--out", out)
    assert code == 0
    assert err.count("`dcamt train DATASET --out RUN --resume`") == 1
    assert [row["confidence"] for row in rows(out)] == [""] * 3
    data = validated_run.parent / "data"
    assert cli("train", data, "--out", run, "--resume", "--quiet")[0] == 0
    assert (run / CALIBRATION).read_text() == (validated_run / CALIBRATION).read_text()
    assert cli("predict", run, scans, "--out", out, "--resume")[0] == 0
    assert all(row["confidence"] for row in rows(out))


def test_the_best_weights_have_no_confidence_of_the_last(cli, validated_run, scans, tmp_path):
    out = tmp_path / "out"
    _, _, err = cli("predict", validated_run, scans, "--out", out, "--weights", "best")
    assert "known of the last weights only" in err
    assert [row["confidence"] for row in rows(out)] == [""] * 3


def test_the_summary_is_whole_after_a_resume(cli, run, scans, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert cli("predict", run, scans, "--out", whole, "-q")[0] == 0
    assert cli("predict", run, scans / "a.nii.gz", "--out", out, "-q")[0] == 0
    # Killed while it wrote b, and before it summed up.
    (out / "summary.csv").unlink()
    (out / "summary.json").unlink()
    (out / "summary" / "b.json").write_text('{"classes": [{"volume_ml": 9, "expected_dice": 0}]}')
    made = (out / "a.nii.gz").stat().st_mtime_ns
    assert cli("predict", run, scans, "--out", out, "--resume", "-q")[0] == 0
    assert (out / "a.nii.gz").stat().st_mtime_ns == made
    for name in ("summary.csv", "summary.json"):
        assert (out / name).read_text() == (whole / name).read_text()


def test_segmentations_without_numbers_are_made_again_by_a_resume(cli, run, scans, tmp_path):
    out = tmp_path / "out"
    assert cli("predict", run, scans, "--out", out, "-q")[0] == 0
    before = (out / "summary.csv").read_text()
    shutil.rmtree(out / "summary")
    assert cli("predict", run, scans, "--out", out, "--resume", "-q")[0] == 0
    assert (out / "summary.csv").read_text() == before


def test_a_scan_that_is_removed_leaves_the_summary(cli, run, scans, tmp_path):
    out = tmp_path / "out"
    assert cli("predict", run, scans, "--out", out, "-q")[0] == 0
    (out / "b.nii.gz").unlink()
    (scans / "b.nii.gz").unlink()
    assert cli("predict", run, scans, "--out", out, "--resume", "-q")[0] == 0
    assert sorted(row["case"] for row in rows(out)) == ["a", "c"]


def test_a_damaged_scan_does_not_keep_the_others_from_being_summed_up(cli, run, scans, tmp_path):
    (scans / "b.nii.gz").write_bytes((scans / "b.nii.gz").read_bytes()[:-100])
    assert cli("predict", run, scans, "--out", tmp_path / "out", "-q")[0] == 2
    assert sorted(row["case"] for row in rows(tmp_path / "out")) == ["a", "c"]


def test_one_file_has_no_summary(cli, run, scans, tmp_path):
    out = tmp_path / "out" / "seg.nii.gz"
    assert cli("predict", run, scans / "a.nii.gz", "--out", out, "-q")[0] == 0
    assert [path.name for path in out.parent.iterdir()] == ["seg.nii.gz"]


def test_openvino_gives_the_same_numbers(cli, run, scans, tmp_path):
    pytest.importorskip("openvino")
    for backend in ("torch", "openvino"):
        given = ("--backend", backend, "--device", "cpu", "-q")
        assert cli("predict", run, scans, "--out", tmp_path / backend, *given)[0] == 0
    for one, other in zip(rows(tmp_path / "torch"), rows(tmp_path / "openvino"), strict=True):
        assert one["case"] == other["case"]
        assert float(one["confidence"]) == pytest.approx(float(other["confidence"]), abs=1e-3)
        assert float(one["volume_ml"]) == pytest.approx(float(other["volume_ml"]), abs=0.02)


@pytest.mark.parametrize(("name", "text"), [("summary.csv", "my,own\n"), ("summary.json", "{}")])
def test_a_summary_of_somebody_else_stays(cli, run, scans, tmp_path, name, text):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(text)
    code, _, err = cli("predict", run, scans, "--out", out, "-q")
    assert (code, err.count("\n")) == (2, 1)
    assert f"{name}: is not of `dcamt predict`" in err
    assert (out / name).read_text() == text
    assert not list(out.glob("*.nii.gz"))


@pytest.mark.parametrize("text", ["{", "{}", '{"classes": []}', '{"classes": [{"exponent": -1}]}'])
def test_a_broken_calibration_is_told_in_one_sentence(cli, run, scans, tmp_path, text):
    (run / CALIBRATION).write_text(text)
    code, _, err = cli("predict", run, scans, "--out", tmp_path / "out", "-q")
    assert (code, err.count("\n")) == (2, 1)
    assert f"{CALIBRATION}: " in err


def test_an_export_carries_the_calibration_of_its_weights(validated_run, scans, tmp_path):
    last, best = tmp_path / "last", tmp_path / "best"
    api.export(validated_run, last)
    api.export(validated_run, best, weights="best")
    kept = json.loads((last / CALIBRATION).read_text())
    assert kept == json.loads((validated_run / CALIBRATION).read_text())
    assert not (best / CALIBRATION).exists()
    api.predict(last, scans, tmp_path / "out", quiet=True)
    assert all(row["confidence"] for row in rows(tmp_path / "out"))


# ------------------------------------------------------------------------------------- the order


def summed(out, cases, *fits, classes=("background", "=A1", "B")):
    """The rows of cases with the values ``(volume_ml, expected_dice)`` of each class."""
    (out / "summary").mkdir()
    for case, values in cases.items():
        found = [dict(zip(("volume_ml", "expected_dice"), v, strict=True)) for v in values]
        (out / "summary" / f"{case}.json").write_text(json.dumps({"classes": found}))
        (out / f"{case}.nii.gz").touch()
    calibration = {"classes": list(fits)} if fits else None
    return write_summary(out, ".nii.gz", classes, calibration)


def order(found):
    return list(dict.fromkeys(row["case"] for row in found))


def test_what_is_not_found_comes_first_where_every_validation_case_has_it(tmp_path):
    cases = {
        "good": [(1, 0.9), (1, 0.9)],
        "bad": [(1, 0.9), (1, 0.1)],
        "none": [(1, 0.9), (0, 0)],
    }
    found = summed(tmp_path, cases, FIT, FIT)
    assert order(found) == ["none", "bad", "good"]
    assert [row["flag"] for row in found] == ["", "look", "", "look", "", ""]
    assert found[1]["confidence"] is None
    assert found[1]["volume_ml"] == 0


def test_what_is_not_found_is_as_it_should_be_where_some_validation_cases_lack_it(tmp_path):
    cases = {"none": [(1, 0.99), (0, 0)], "good": [(1, 0.9), (1, 0.9)]}
    found = summed(tmp_path, cases, FIT, {**FIT, "always": False})
    assert order(found) == ["good", "none"]
    assert not any(row["flag"] for row in found)


def test_a_class_that_is_always_hard_does_not_push_its_cases_forward(tmp_path):
    hard = {**FIT, "look_below": 0.2}
    cases = {"usual": [(1, 0.9), (1, 0.55)], "failed": [(1, 0.65), (1, 0.6)]}
    assert order(summed(tmp_path, cases, FIT, hard)) == ["failed", "usual"]


def test_without_a_calibration_the_order_is_that_of_the_expected_dice(tmp_path):
    found = summed(tmp_path, {"a": [(1, 0.9), (1, 0.8)], "b": [(1, 0.7), (1, 0.9)]})
    assert order(found) == ["b", "a"]
    assert not any(row["flag"] or row["confidence"] for row in found)


def test_names_are_no_formulas_in_a_spreadsheet(tmp_path):
    summed(tmp_path, {"a": [(1, 0.9), (1, 0.8)]})
    assert [row["class_name"] for row in rows(tmp_path)] == ["'=A1", "B"]


def test_numbers_of_another_file_are_refused(tmp_path):
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "summary").mkdir()
    (tmp_path / "summary" / "a.json").write_text('{"mine": 1}')
    with pytest.raises(InputError, match=r"a\.json: lacks keys"):
        write_summary(tmp_path, ".nii.gz", ("background", "A"), None)
