"""Data sets that list their files, keep test scans, or lie in one folder; from disk to a run."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dcamt import api
from dcamt.data.dataset import Dataset, read_dataset, scan_dataset
from dcamt.data.inspect import inspect
from dcamt.data.scans import find_scans
from dcamt.data.volume import read_image, read_label, write_volume
from dcamt.errors import InputError
from dcamt.evaluation.evaluate import evaluate

LABELS = {"background": 0, "a": 1}
AFFINE = np.diag((1.0, 1.5, 2, 1))


def touch(root: Path, *files: str, **entries: Any) -> Path:
    """A data set of empty files, and a dataset.json if it has ``entries``."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    if entries:
        (root / "dataset.json").write_text(json.dumps({"labels": LABELS} | entries))
    return root


def files_of(dataset: Dataset) -> dict[str, tuple[list[str], str | None]]:
    def inside(path: Path) -> str:
        return path.relative_to(dataset.root).as_posix()

    return {
        case.name: ([inside(path) for path in case.images], case.label and inside(case.label))
        for case in dataset.cases
    }


# ----------------------------------------------------------------------- nnU-Net's list of cases


def test_only_the_listed_cases_are_used_wherever_they_lie(tmp_path: Path) -> None:
    listed = {
        "p1": {"images": ["imagesTr/p1_0000.nii.gz"], "label": "labelsTr/p1.nii.gz"},
        "p2": {"images": ["./site/2/t1.nii.gz"], "label": "site/x/../2/seg.nii.gz"},
        "p3": {"images": [str(tmp_path / "site/3.nii.gz")]},
    }
    files = ["imagesTr/p1_0000.nii.gz", "imagesTr/p9_0000.nii.gz", "labelsTr/p1.nii.gz"]
    files += ["site/2/t1.nii.gz", "site/2/seg.nii.gz", "site/3.nii.gz", "imagesUn/u.nii.gz"]
    dataset = read_dataset(touch(tmp_path, *files, dataset=listed))
    assert files_of(dataset) == {
        "p1": (["imagesTr/p1_0000.nii.gz"], "labelsTr/p1.nii.gz"),
        "p2": (["site/2/t1.nii.gz"], "site/2/seg.nii.gz"),
        "p3": (["site/3.nii.gz"], None),
        "u": (["imagesUn/u.nii.gz"], None),
    }
    (note,) = dataset.notes
    assert "imagesTr holds 1 file(s) that dataset.json does not list under 'dataset'" in note


def test_listed_channels_keep_their_order(tmp_path: Path) -> None:
    listed = {"p": {"images": ["y/flair.nii.gz", "x/t1.nii.gz"], "label": None}}
    touch(tmp_path, "x/t1.nii.gz", "y/flair.nii.gz", dataset=listed)
    dataset = read_dataset(tmp_path)
    assert files_of(dataset) == {"p": (["y/flair.nii.gz", "x/t1.nii.gz"], None)}
    assert dataset.channels == ("channel_0", "channel_1")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["../secret.nii.gz"], r"lists '\.\./secret\.nii\.gz', which lies outside the data set"),
        (["in/../../secret.nii.gz"], "which lies outside the data set"),
        (["/etc/secret.nii.gz"], "which lies outside the data set's folder; move or link it"),
        (["in/b.nii.gz"], r"in/b\.nii\.gz: is listed in dataset\.json, but is not there"),
        (["in/a.png"], r"in/a\.png: unsupported file ending"),
        (["in"], "in: unsupported file ending"),
        (["in/a.nii.gz"] * 3, "case p lists 3 images, but the data set has 2 channels"),
    ],
)
@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
def test_lists_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: list[str], message: str, relative: bool
) -> None:
    """A stranger's list must not read the user's files elsewhere."""
    root = tmp_path / "data"
    touch(tmp_path, "secret.nii.gz")
    entries = {"channel_names": ["T1", "T2"], "dataset": {"p": {"images": images}}}
    touch(root, "in/a.nii.gz", "in/a.png", **entries)
    monkeypatch.chdir(root)
    dataset, problems = scan_dataset(Path() if relative else root)
    assert dataset.cases == ()
    with pytest.raises(InputError, match=message):
        raise InputError(problems[0])


# ------------------------------------------------------------------------ the Decathlon's lists


def test_listed_files_that_are_missing_are_said(tmp_path: Path) -> None:
    """Unlabelled scans, which no such list has, stay."""
    pairs = [f"./imagesTr/{name}.nii.gz" for name in "abc"]
    training = [{"image": name, "label": name.replace("images", "labels")} for name in pairs]
    files = ["imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "imagesTr/u.nii.gz", "labelsTr/a.nii.gz"]
    dataset = read_dataset(touch(tmp_path, *files, training=training))
    assert [(case.name, case.label is None) for case in dataset.cases] == [
        ("a", False),
        ("b", True),
        ("u", True),
    ]
    (note,) = dataset.notes
    assert note.endswith("lists files that are not there: the label of 'b', the image of 'c'")


def test_the_first_nnunets_lists_name_cases_without_a_channel(tmp_path: Path) -> None:
    files = ["imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz"]
    training = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    training += [{"image": ["./imagesTr/b_0000.nii.gz"]}]
    assert read_dataset(touch(tmp_path, *files, training=training)).notes == ()


def test_scans_kept_for_testing_are_said(tmp_path: Path) -> None:
    tests = [f"imagesTs/{case}_000{i}.nii.gz" for case in "xyz" for i in (0, 1)]
    images = [f"imagesTr/a_000{i}.nii.gz" for i in (0, 1)]
    dataset = read_dataset(touch(tmp_path, *images, *tests, "labelsTs/x.nii.gz", name="Toy"))
    assert [case.name for case in dataset.cases] == ["a"]
    wanted = "imagesTs holds 3 scan(s), which are kept for testing: they take no part in training"
    assert dataset.notes == (f"{tmp_path}: {wanted}",)
    assert dataset.channels == ("channel_0", "channel_1")  # counted, as no name is given


def test_a_lone_case_kept_for_testing_is_one_scan(tmp_path: Path) -> None:
    tests = [f"imagesTs/x_000{i}.nii.gz" for i in (0, 1)]
    (note,) = read_dataset(touch(tmp_path, "imagesTr/a_0000.nii.gz", *tests, name="Toy")).notes
    assert "imagesTs holds 1 scan(s)" in note


# ---------------------------------------------------------------------------------- from disk on


def phantom(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of 18 x 17 x 16 voxels and its label, 0 or 1."""
    noise = np.random.default_rng(seed).normal(size=(18, 17, 16)).astype(np.float32)
    label = np.zeros(noise.shape, np.uint8)
    label[5:12, 4:12, 4:12] = 1
    return noise + 3 * label, label


def train(root: Path, run: Path, tiny: list[str]) -> dict[str, Any]:
    """Result of the validation of a training on ``root``; the run must be done without a word."""
    assert inspect(root).errors == []
    api.train(root, run, set=tiny, quiet=True)
    return json.loads((run / "validation.json").read_text())


def test_labels_of_3d_slicer_train_and_validate(tmp_path: Path, tiny: list[str]) -> None:
    for seed, name in enumerate("abcdeuv"):
        image, label = phantom(seed)
        write_volume(tmp_path / f"data/images/{name}.nrrd", image, AFFINE)
        if name not in "uv":
            write_volume(tmp_path / f"data/labels/{name}.seg.nrrd", label, AFFINE)
    result = train(tmp_path / "data", tmp_path / "run", tiny)
    assert len(result["cases"]) == 1


def test_listed_files_train_and_validate(tmp_path: Path, tiny: list[str]) -> None:
    """Their names say nothing of the case."""
    listed = {}
    for seed, name in enumerate("abcdeuv"):
        image, label = phantom(seed)
        write_volume(tmp_path / f"data/{name}/scan.nii.gz", image, AFFINE)
        listed[name] = {"images": [f"{name}/scan.nii.gz"]}
        if name not in "uv":
            write_volume(tmp_path / f"data/{name}/truth.nii.gz", label, AFFINE)
            listed[name]["label"] = f"{name}/truth.nii.gz"  # type: ignore[assignment]
    root = touch(tmp_path / "data", dataset=listed)
    result = train(root, tmp_path / "run", tiny)
    (case,) = {row["case"] for row in result["cases"]}
    assert case in listed
    assert [scan.name for scan in find_scans(root, 1)] == list("abcdeuv")


def test_values_to_ignore_are_ignored_whatever_they_are(tmp_path: Path, tiny: list[str]) -> None:
    for seed, name in enumerate("abcdeuv"):
        image, label = phantom(seed)
        label[:, :, :3] = 255
        write_volume(tmp_path / f"data/imagesTr/{name}_0000.nii.gz", image, AFFINE)
        if name not in "uv":
            write_volume(tmp_path / f"data/labelsTr/{name}.nii.gz", label, AFFINE)
    root = touch(tmp_path / "data", labels={"a": 1, "ignore": 255})
    result = train(root, tmp_path / "run", tiny)
    assert list(result["per_class"]) == ["1"]
    label[:, :, :3] = 1  # of no account, as nobody knows what is there
    write_volume(tmp_path / "guess/e.nii.gz", label, AFFINE)
    assert evaluate(tmp_path / "guess", root)["mean"]["dice"] == 1


def test_a_folder_of_hdf5_files_is_read(tmp_path: Path, tiny: list[str]) -> None:
    """As semi-supervised papers hand their data on: image and label in each file."""
    root = touch(tmp_path / "data", "train.txt")
    for seed, name in enumerate(("image001_norm", "b", "c", "d", "e", "u", "v")):
        image, label = phantom(seed)
        with h5py.File(root / f"{name}.h5", "w") as file:
            file["image"] = image
            if name not in "uv":
                file["label"] = label
    dataset = read_dataset(root)
    assert files_of(dataset)["image001_norm"] == (["image001_norm.h5"], "image001_norm.h5")
    assert files_of(dataset)["u"] == (["u.h5"], None)
    assert read_image(dataset.case("u").images).shape == (18, 17, 16)
    assert read_label(root / "b.h5").array.sum() == 7 * 8 * 8
    assert len(train(root, tmp_path / "run", tiny)["cases"]) == 1
    assert evaluate(root / "b.h5", root)["not_predicted"] == 4


def test_other_volumes_beside_hdf5_files_are_said_to_be_left_out(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = np.ones((2, 3, 4), np.float32)
    dataset = read_dataset(touch(tmp_path, "b.nii.gz"))
    assert [case.name for case in dataset.cases] == ["a"]
    assert dataset.notes == (
        f"{tmp_path}: 1 other volume(s) lie beside the HDF5 files: they take no part in training",
    )
    assert inspect(tmp_path).warnings[0] == dataset.notes[0]
