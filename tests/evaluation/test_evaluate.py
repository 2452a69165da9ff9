"""Folders of predictions against folders of labels, as small NIfTI files on disk."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dcamt import api
from dcamt.data.volume import read_label, write_volume
from dcamt.errors import InputError
from dcamt.evaluation.evaluate import evaluate, write_json

SPACING = (2.0, 1.0, 0.5)
SHAPE = (8, 10, 12)


def label_map(**positions: int) -> np.ndarray:
    """Background, and for each ``cVALUE=x`` a plane of that value at index x of the first axis."""
    array = np.zeros(SHAPE, dtype=np.int16)
    for name, position in positions.items():
        array[position] = int(name.removeprefix("c"))
    return array


def save(path: Path, array: np.ndarray, spacing: tuple[float, ...] = SPACING) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag((*spacing, 1.0))), path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three cases of classes 1 and 2: one apart by a plane, one missed and invented, one perfect.

    A fourth case has a label but no prediction.
    """
    predictions, labels = tmp_path / "predictions", tmp_path / "labels"
    for case, predicted, true in (
        ("apart", label_map(c1=2, c2=6), label_map(c1=3, c2=6)),
        ("confused", label_map(c2=4), label_map(c1=4)),
        ("perfect", label_map(c1=5), label_map(c1=5)),
    ):
        save(predictions / f"{case}.nii.gz", predicted)
        save(labels / f"{case}.nii.gz", true)
    save(labels / "later.nii.gz", label_map(c1=1))
    return predictions, labels


def declare(folder: Path, labels: object) -> None:
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}), encoding="utf-8")


def row_of(result: dict, case: str, value: int) -> dict:
    (row,) = (row for row in result["cases"] if (row["case"], row["class"]) == (case, value))
    return row


# ---------------------------------------------------------------------------------- the numbers


def test_rows_in_mm(folders: tuple[Path, Path]) -> None:
    result = evaluate(*folders)
    assert [(row["case"], row["class"], row["outcome"]) for row in result["cases"]] == [
        ("apart", 1, "ok"),
        ("apart", 2, "ok"),
        ("confused", 1, "missed"),
        ("confused", 2, "invented"),
        ("perfect", 1, "ok"),
        ("perfect", 2, "both empty"),
    ]
    assert row_of(result, "apart", 1) == {
        "case": "apart",
        "class": 1,
        "dice": 0,
        "jaccard": 0,
        "hd95": pytest.approx(2.0),
        "asd": pytest.approx(2.0),
        "outcome": "ok",
    }
    assert result["unit"] == "mm"


def test_rows_in_voxels(folders: tuple[Path, Path]) -> None:
    result = evaluate(*folders, unit="voxels")
    assert row_of(result, "apart", 1)["hd95"] == pytest.approx(1.0)
    assert result["unit"] == "voxels"


def test_means_count_misses_in_overlap_and_never_as_a_distance(folders: tuple[Path, Path]) -> None:
    result = evaluate(*folders)
    # Dice: apart 0 and 1, confused 0 and 0, perfect 1; perfect has no class 2 to measure
    assert result["mean"]["dice"] == pytest.approx(2 / 5)
    # 95HD: apart 2 and 0, perfect 0
    assert result["mean"]["hd95"] == pytest.approx(2 / 3)
    # over the cases' means: Dice 0.5, 0, 1 and 95HD 1, 0
    assert result["std"]["dice"] == pytest.approx(np.std((0.5, 0, 1)))
    assert result["std"]["asd"] == pytest.approx(0.5)
    assert (result["ok"], result["missed"], result["invented"], result["both_empty"]) == (
        3,
        1,
        1,
        1,
    )
    assert result["not_predicted"] == 1


def test_means_of_each_class(folders: tuple[Path, Path]) -> None:
    per_class = evaluate(*folders)["per_class"]
    assert list(per_class) == ["1", "2"]
    first, second = per_class.values()
    assert first["dice"] == pytest.approx(1 / 3)
    assert first["hd95"] == pytest.approx(1.0)
    assert (first["ok"], first["missed"], first["invented"], first["both_empty"]) == (2, 1, 0, 0)
    assert second["dice"] == pytest.approx(0.5)
    assert second["hd95"] == 0
    assert second["std"]["hd95"] is None  # one value has no spread
    assert (second["ok"], second["missed"], second["invented"], second["both_empty"]) == (
        1,
        0,
        1,
        1,
    )


def test_one_prediction_file(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    result = evaluate(predictions / "perfect.nii.gz", labels)
    assert [row["case"] for row in result["cases"]] == ["perfect"]
    assert result["mean"] == {"dice": 1, "jaccard": 1, "hd95": 0, "asd": 0}
    assert result["not_predicted"] == 3


def test_nothing_to_measure_is_none_not_zero(tmp_path: Path) -> None:
    save(tmp_path / "p" / "a.nii.gz", label_map())
    save(tmp_path / "l" / "a.nii.gz", label_map())
    declare(tmp_path / "l", {"background": 0, "lesion": 1})
    result = evaluate(tmp_path / "p", tmp_path / "l")
    assert set(result["mean"].values()) == {None}
    assert result["both_empty"] == 1


def test_real_labels_against_themselves(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "hippocampus"
    for file in sorted((root / "labelsTr").glob("hippocampus_*.nii.gz"))[:2]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    result = evaluate(tmp_path, root)
    assert result["mean"] == {"dice": 1, "jaccard": 1, "hd95": 0, "asd": 0}
    assert [row["class_name"] for row in result["cases"]] == 2 * ["Anterior", "Posterior"]
    assert result["not_predicted"] == 198


# ------------------------------------------------------------------------------- other metrics


def test_the_metrics_asked_for_are_measured(folders: tuple[Path, Path]) -> None:
    asked = ["nsd", "dice", "assd", "hd95_max", "hd"]
    result = evaluate(*folders, metrics=asked, tolerance=2)
    apart = row_of(result, "apart", 1)  # planes 2 mm from each other
    assert list(apart) == ["case", "class", *asked, "outcome"]
    assert [apart[metric] for metric in asked] == pytest.approx([1, 0, 2, 2, 2])
    missed = row_of(result, "confused", 1)
    assert (missed["nsd"], missed["hd"]) == (0, None)
    assert result["mean"]["nsd"] == pytest.approx(3 / 5)
    assert list(result["mean"]) == list(result["std"]) == asked
    assert list(result["per_class"]["2"]["std"]) == asked
    assert result["tolerance"] == 2
    assert "tolerance" not in evaluate(*folders, metrics=["hd"])


def test_the_tolerance_is_in_the_unit(folders: tuple[Path, Path]) -> None:
    for unit, tolerance, expected in (("mm", 1.5, 0), ("voxels", 1, 1), ("voxels", 0.9, 0)):
        result = evaluate(*folders, unit=unit, metrics=["nsd"], tolerance=tolerance)
        assert row_of(result, "apart", 1)["nsd"] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["dice", "hd99"]}, "'hd99' is not known; choose from dice, jaccard, .*, nsd"),
        ({"metrics": []}, "none is named"),
        ({"tolerance": -1.0}, "tolerance -1: give a distance of 0 or more, in mm"),
        ({"tolerance": float("nan")}, "tolerance nan"),
        ({"tolerance": float("inf")}, "tolerance inf"),
    ],
)
def test_unusable_metrics(folders: tuple[Path, Path], options, message) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(*folders, **options)


def test_the_command_takes_metrics_and_a_tolerance(folders, tmp_path: Path, cli) -> None:
    scores = tmp_path / "scores.json"
    code, out, _ = cli("evaluate", *folders, "--out", scores, "--metrics", "dice, nsd",
                       "--tolerance", "2")  # fmt: skip
    assert code == 0
    assert "NSD within 2 mm" in out and "NSD (%)" in out and "95HD" not in out
    assert json.loads(scores.read_text())["mean"] == {"dice": 0.4, "nsd": 0.6}
    assert api.evaluate(*folders, metrics="nsd,dice", tolerance=2)["mean"]["nsd"] == 0.6
    code, _, err = cli("evaluate", *folders, "--out", scores, "--metrics", "volume")
    assert code == 2
    assert err == (
        "dcamt: metrics: 'volume' is not known; choose from dice, jaccard, hd95, asd, assd, hd, "
        "hd95_max, nsd\n"
    )


# ------------------------------------------------------------------------ where the labels lie


@pytest.mark.parametrize("folder", ["labelsTr", "labels"])
@pytest.mark.parametrize(
    "declared",
    [{"background": 0, "left": 1, "right": 2}, {"0": "background", "1": "left", "2": "right"}],
    ids=["nnU-Net", "Decathlon"],
)
def test_root_of_a_data_set(
    folders: tuple[Path, Path], tmp_path: Path, folder: str, declared: dict
) -> None:
    predictions, labels = folders
    root = tmp_path / "root"
    root.mkdir()
    labels.rename(root / folder)
    declare(root, declared)
    for place in (root, root / folder):
        result = evaluate(predictions, place)
        assert row_of(result, "apart", 2)["class_name"] == "right"
        assert result["per_class"]["1"]["class_name"] == "left"


def test_a_declared_class_that_never_occurs_is_listed(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    declare(labels, {"background": 0, "left": 1, "right": 2, "rare": 3})
    rare = evaluate(predictions, labels)["per_class"]["3"]
    assert rare["dice"] is None
    assert rare["both_empty"] == 3


def test_voxels_declared_as_ignore_are_left_out(tmp_path: Path) -> None:
    save(tmp_path / "p" / "a.nii.gz", label_map(c1=2) + label_map(c1=6))
    save(tmp_path / "l" / "a.nii.gz", label_map(c1=2, c2=6))
    declare(tmp_path / "l", {"background": 0, "lesion": 1, "ignore": 2})
    result = evaluate(tmp_path / "p", tmp_path / "l")
    assert list(result["per_class"]) == ["1"]
    assert result["mean"]["dice"] == 1


def test_hidden_files_are_not_cases(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    (predictions / "._apart.nii.gz").write_bytes(b"left by an archive")
    (labels / "._apart.nii.gz").write_bytes(b"left by an archive")
    assert len(evaluate(predictions, labels)["cases"]) == 6


# ------------------------------------------------------------------------------------ bad input


def test_predictions_without_a_label_are_named(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    for case in ("extra_1", "extra_2"):
        save(predictions / f"{case}.nii.gz", label_map(c1=1))
    with pytest.raises(InputError, match=r"for 2 of the predictions \(extra_1, extra_2\)"):
        evaluate(predictions, labels)


def test_absent_and_empty_folders(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, labels = folders
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="nowhere: no such folder"):
        evaluate(tmp_path / "nowhere", labels)
    with pytest.raises(InputError, match="nowhere: is not a folder"):
        evaluate(predictions, tmp_path / "nowhere")
    for arguments in ((empty, labels), (predictions, empty)):
        with pytest.raises(InputError, match=r"empty: holds no \.nii\.gz or other"):
            evaluate(*arguments)


def test_every_format_and_the_literatures_files(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, labels = folders
    wanted = evaluate(predictions, labels)
    others, papers = tmp_path / "others", tmp_path / "papers"
    endings = ("nrrd", "mha", "h5", "nii")
    for number, path in enumerate(sorted(predictions.glob("*.nii.gz"))):
        case, volume = path.name.removesuffix(".nii.gz"), read_label(path)
        write_volume(others / f"{case}.{endings[number % 4]}", volume.array, volume.affine)
        truth = read_label(labels / path.name)
        write_volume(papers / case / "mri_norm2.h5", truth.array, truth.affine)
    assert evaluate(others, papers) == wanted | {"not_predicted": 0}
    write_volume(papers / "unlabelled" / "mri_norm2.h5", np.ones((2, 2, 2)) / 2, np.eye(4))
    assert evaluate(others, papers)["not_predicted"] == 0  # there is no label in it


def test_a_file_that_is_no_volume(folders: tuple[Path, Path], tmp_path: Path) -> None:
    scan = tmp_path / "apart.png"
    scan.write_bytes(b"")
    with pytest.raises(InputError, match="is no volume"):
        evaluate(scan, folders[1])


def test_two_files_of_one_case(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    save(predictions / "apart.nii", label_map(c1=1))
    with pytest.raises(InputError, match=r"there is also apart\.nii;"):
        evaluate(predictions, labels)


@pytest.mark.parametrize(
    ("array", "spacing"),
    [(label_map(c1=2)[:, :, :-1], SPACING), (label_map(c1=2), (2.0, 1.0, 1.0))],
    ids=["shape", "spacing"],
)
def test_another_grid_is_refused(folders: tuple[Path, Path], array, spacing) -> None:
    predictions, labels = folders
    save(predictions / "apart.nii.gz", array, spacing)
    with pytest.raises(InputError, match=r"apart\.nii\.gz"):
        evaluate(predictions, labels)


def test_files_along_other_axes_are_compared_in_space(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    before = evaluate(predictions, labels)
    for path in labels.glob("*.nii.gz"):
        label = nib.load(path)
        turned = label.as_reoriented(nib.orientations.axcodes2ornt("PLI"))
        nib.save(turned, path)
    after = evaluate(predictions, labels)
    assert after["cases"] == before["cases"]
    assert after["mean"] == before["mean"]


def test_a_value_that_is_not_declared(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    declare(labels, {"background": 0, "only": 1})
    with pytest.raises(InputError, match=r"predictions.apart\.nii\.gz: holds the value 2"):
        evaluate(predictions, labels)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "cannot be read"),
        ("[]", "must hold a JSON object"),
        ("{}", "'labels' is missing"),
        ('{"labels": {"background": 0}}', "'labels' names no class beside the background"),
        ('{"labels": {"background": 0, "whole": [1, 2]}}', ".*regions are not supported"),
        ('{"labels": ["background", "lesion"]}', r"'labels' is \['background', 'lesion'\]"),
        ('{"labels": {"background": 0, "a": 1, "b": 3}}', "'labels' has no name for the value 2"),
    ],
)
def test_unusable_dataset_json(folders: tuple[Path, Path], text: str, message: str) -> None:
    predictions, labels = folders
    (labels / "dataset.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"dataset\.json: {message}"):
        evaluate(predictions, labels)


def test_unknown_unit(folders: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="choose mm or voxels"):
        evaluate(*folders, unit="cm")


# -------------------------------------------------------------------------------------- outputs


def test_json_reads_back_as_it_was(folders: tuple[Path, Path], tmp_path: Path) -> None:
    result = evaluate(*folders)
    path = tmp_path / "new" / "result.json"
    write_json(result, path)
    assert json.loads(path.read_text(encoding="utf-8")) == result
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_json_that_cannot_be_written(folders: tuple[Path, Path], tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(InputError, match="taken: cannot be written"):
        write_json(evaluate(*folders), taken)
