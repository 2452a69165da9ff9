"""Layouts on disk, splits, and hidden labels."""

import json
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest

from dcamt.config import DataConfig
from dcamt.data.classes import check_label_values, classes_from_values
from dcamt.data.dataset import Case, Dataset, read_dataset, scan_dataset
from dcamt.data.split import Split, choose_split, hide_labels
from dcamt.data.survey import Survey, survey
from dcamt.errors import InputError

MSD = {"name": "Toy", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}}
NNUNET = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "oedema": 1, "core": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def folder(root: Path, files: list[str], description: Any = None) -> Path:
    """A data set of empty files: reading a layout opens none of them."""
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if description is not None:
        (root / "dataset.json").write_text(json.dumps(description))
    return root


def case_table(dataset: Dataset) -> dict[str, tuple[list[str], str | None]]:
    return {
        case.name: ([p.name for p in case.images], case.label and case.label.name)
        for case in dataset.cases
    }


def test_msd(tmp_path: Path) -> None:
    files = ["imagesTr/b_002.nii.gz", "imagesTr/a_001.nii.gz", "imagesUn/c_003.nii"]
    root = folder(tmp_path, [*files, "labelsTr/a_001.nii.gz"], MSD)
    dataset = read_dataset(root)
    assert (dataset.name, dataset.channels, dataset.ignore) == ("Toy", ("CT",), None)
    assert dataset.classes == ("background", "liver")
    assert case_table(dataset) == {
        "a_001": (["a_001.nii.gz"], "a_001.nii.gz"),
        "b_002": (["b_002.nii.gz"], None),
        "c_003": (["c_003.nii"], None),
    }
    assert dataset.case("b_002").label is None
    with pytest.raises(InputError, match="no case named 'd'"):
        dataset.case("d")


def test_nnunet(tmp_path: Path) -> None:
    images = [f"imagesTr/{case}_{i:04d}.nii.gz" for case in ("p2", "p1") for i in (1, 0)]
    images += [f"imagesUn/u_{i:04d}.nii.gz" for i in (0, 1)]
    dataset = read_dataset(
        folder(tmp_path / "Dataset007_Brain", [*images, "labelsTr/p1.nii.gz"], NNUNET)
    )
    assert dataset.name == "Dataset007_Brain"
    assert dataset.channels == ("T1", "T2")
    assert dataset.classes == ("background", "oedema", "core")
    assert case_table(dataset) == {
        "p1": (["p1_0000.nii.gz", "p1_0001.nii.gz"], "p1.nii.gz"),
        "p2": (["p2_0000.nii.gz", "p2_0001.nii.gz"], None),
        "u": (["u_0000.nii.gz", "u_0001.nii.gz"], None),
    }


def test_plain(tmp_path: Path) -> None:
    root = folder(tmp_path / "toy", ["images/a.nii", "images/b.nii.gz", "labels/b.nii.gz"])
    dataset = read_dataset(root)
    assert (dataset.name, dataset.channels, dataset.classes) == ("toy", (), ())
    assert case_table(dataset) == {"a": (["a.nii"], None), "b": (["b.nii.gz"], "b.nii.gz")}

    described = read_dataset(folder(root, [], MSD))
    assert described.classes == ("background", "liver")


def test_plain_with_channel_files(tmp_path: Path) -> None:
    files = ["images/a_0000.nii.gz", "images/a_0001.nii.gz", "labels/a.nii.gz"]
    dataset = read_dataset(folder(tmp_path, files))
    assert dataset.channels == ("channel_0", "channel_1")
    assert case_table(dataset) == {"a": (["a_0000.nii.gz", "a_0001.nii.gz"], "a.nii.gz")}


def test_files_of_every_format_and_folders_of_slices(tmp_path: Path) -> None:
    files = ["images/a.nrrd", "images/b.mha", "images/c.h5", "images/d/IM1.dcm", "images/d/IM2.dcm"]
    files += ["images/e.nhdr", "images/e.raw.gz", "images/f.mhd", "images/f.zraw", "images/g/x.txt"]
    dataset = read_dataset(folder(tmp_path, [*files, "labels/a.mha", "labels/d.nii.gz"]))
    assert case_table(dataset) == {
        "a": (["a.nrrd"], "a.mha"),
        "b": (["b.mha"], None),
        "c": (["c.h5"], None),
        "d": (["d"], "d.nii.gz"),
        "e": (["e.nhdr"], None),
        "f": (["f.mhd"], None),
    }


def test_nnunet_with_another_file_ending(tmp_path: Path) -> None:
    images = [f"imagesTr/p_{i:04d}.nrrd" for i in (0, 1)]
    description = NNUNET | {"file_ending": ".nrrd"}
    dataset = read_dataset(folder(tmp_path, [*images, "labelsTr/p.nrrd"], description))
    assert case_table(dataset) == {"p": (["p_0000.nrrd", "p_0001.nrrd"], "p.nrrd")}


def literature(root: Path, case: str, **datasets: np.ndarray) -> None:
    (root / case).mkdir(parents=True)
    with h5py.File(root / case / "mri_norm2.h5", "w") as file:
        for name, values in datasets.items():
            file[name] = values


VOXELS = np.ones((2, 3, 4), np.uint8)


def test_the_literatures_layout(tmp_path: Path) -> None:
    literature(tmp_path, "B", image=VOXELS, label=VOXELS)
    literature(tmp_path, "A", image=VOXELS)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.list").write_text("A")
    dataset = read_dataset(tmp_path)
    assert case_table(dataset) == {
        "A": (["mri_norm2.h5"], None),
        "B": (["mri_norm2.h5"], "mri_norm2.h5"),
    }
    assert dataset.channels == ()
    (tmp_path / "C").mkdir()
    (tmp_path / "C" / "mri_norm2.h5").write_bytes(b"hello")
    with pytest.raises(InputError, match=r"C/mri_norm2\.h5: cannot be read"):
        read_dataset(tmp_path)


def test_real_data_of_the_literature(real_data: Path) -> None:
    root = real_data / "left_atrium_h5"
    if not root.is_dir():
        pytest.skip("left_atrium_h5 is absent from the real volumes")
    dataset = read_dataset(root)
    assert len(dataset.cases) == 2
    assert looked_at(dataset).dataset.classes == ("background", "class_1")


@pytest.mark.parametrize("name", ["..", "../x", "/tmp/x", "a\nb", ".x"])
def test_names_in_a_stranger_s_description_write_nowhere(tmp_path: Path, name: str) -> None:
    """A data set's own lists cannot name what is not there, nor can its name become a path."""
    root = folder(tmp_path / "data", [*IMAGE, "labelsTr/a.nii.gz"], MSD | {"name": name})
    with pytest.raises(InputError, match="'name'"):
        read_dataset(root)
    path = splits(tmp_path, labeled=["a"], val=[name])
    dataset = read_dataset(folder(tmp_path / "data", [], MSD))
    with pytest.raises(InputError, match="not in"):
        choose_split(dataset, path, None, 0, 0.2)


def test_four_digits_of_a_case_are_no_channel(tmp_path: Path) -> None:
    files = [f"imagesTr/scan_{i:04d}.nii.gz" for i in range(3)]
    dataset = read_dataset(folder(tmp_path, [*files, "labelsTr/scan_0001.nii.gz"], MSD))
    assert [case.name for case in dataset.cases] == ["scan_0000", "scan_0001", "scan_0002"]


def test_files_that_are_no_data_are_passed_over(tmp_path: Path) -> None:
    files = ["images/a.nii.gz", "images/._a.nii.gz", "images/.DS_Store", "images/a.json"]
    dataset = read_dataset(folder(tmp_path, [*files, "labels/._a.nii.gz", "labels/Thumbs.db"]))
    assert case_table(dataset) == {"a": (["a.nii.gz"], None)}


IMAGE = ["imagesTr/a.nii.gz"]
BAD_FOLDERS: dict[str, tuple[list[str], Any, str]] = {
    "empty": ([], None, r"expected imagesTr/ .* nnU-Net raw .* or images/ and labels/"),
    "unknown layout": (["scans/a.nii.gz"], None, "not a data set of a known layout"),
    "no images": (["images/readme.txt"], None, "holds no images"),
    "no json": (IMAGE, None, "dataset.json is missing"),
    "label without image": (
        [*IMAGE, "labelsTr/b.nii.gz"],
        MSD,
        r"b.nii.gz: the label has no image in imagesTr; add b.nii.gz",
    ),
    "label of an imagesUn case": (
        [*IMAGE, "imagesUn/b.nii.gz", "labelsTr/b.nii.gz"],
        MSD,
        "the label has no image in imagesTr",
    ),
    "missing channel": (
        ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/b_0000.nii.gz"],
        NNUNET,
        r"case b lacks the channels 0001 \(T2\); add files such as b_0001.nii.gz",
    ),
    "missing channel of all": (
        ["imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz"],
        NNUNET,
        r"case a lacks the channels 0001 \(T2\).*2 such problems in all",
    ),
    "channel too many": (
        [f"imagesTr/a_000{i}.nii.gz" for i in range(3)],
        NNUNET,
        r"case a has 3 channels, but the data set has 2 \(T1, T2\)",
    ),
    "channel number missing": (
        ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", *IMAGE, "labelsTr/a.nii.gz"],
        NNUNET,
        r"imagesTr/a.nii.gz: the name lacks a channel number .* a_0000.nii.gz",
    ),
    "same name twice": ([*IMAGE, "imagesTr/a.nii"], MSD, "has the same case name"),
    "same name in imagesUn": ([*IMAGE, "imagesUn/a.nii"], MSD, "in both imagesTr and imagesUn"),
    "other format": (["images/a.png"], None, r"a.png: unsupported file ending"),
    "other compression": (
        ["images/a.nii.bz2", "images/backup.tar.xz"],
        None,
        r"a.nii.bz2: is packed; unpack it$",
    ),
    "a scan further down": (
        ["images/a.nii.gz", "images/b/study/series/1.dcm"],
        None,
        "b: holds scans further down",
    ),
    "a label further down": (
        ["images/a.nii.gz", "labels/a/label.nii.gz"],
        None,
        "a: holds scans further down",
    ),
    "a single slice": (["images/a.dcm"], None, "images: holds DICOM slices among"),
    "case name twice": (["images/a.nrrd", "images/a.mha"], None, "has the same case name"),
    "name with a backslash": (["images/x\\a.nii"], None, "characters no case may have"),
    "name with a line break": (["images/a\nb.nii"], None, "characters no case may have"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_bad_folder(tmp_path: Path, name: str) -> None:
    files, description, message = BAD_FOLDERS[name]
    with pytest.raises(InputError, match=message):
        read_dataset(folder(tmp_path, files, description))


def test_names_are_the_same_in_either_spelling(tmp_path: Path) -> None:
    """A Mac writes the two dots of a letter as a character of their own."""
    one, two = "M\u00fcller", "Mu\u0308ller"
    root = folder(tmp_path, [f"images/{one}.nii.gz", f"labels/{two}.nii.gz"])
    dataset = read_dataset(root)
    assert [(case.name, case.label is None) for case in dataset.cases] == [(one, False)]
    splits = root / "splits.json"
    splits.write_text(json.dumps({"labeled": [two], "unlabeled": [], "val": []}))
    assert choose_split(dataset, splits, None, 0, 0.2).labeled == (one,)


def test_too_many_classes(tmp_path: Path) -> None:
    labels = {str(k): f"part {k}" if k else "background" for k in range(129)}
    with pytest.raises(InputError, match="has 129 classes"):
        read_dataset(folder(tmp_path, IMAGE, MSD | {"labels": labels}))
    with pytest.raises(InputError, match="has 129 classes"):
        classes_from_values(dict.fromkeys(range(129), tmp_path), tmp_path)
    assert len(classes_from_values(dict.fromkeys(range(128), tmp_path), tmp_path)) == 128


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"file: no such folder"):
        read_dataset(folder(tmp_path, ["file"]) / "file")


def test_scan_returns_every_problem_and_the_usable_cases(tmp_path: Path) -> None:
    files = [*IMAGE, "imagesTr/a.nii", "imagesTr/b.tif", "labelsTr/c.nii.gz"]
    dataset, problems = scan_dataset(folder(tmp_path, files, MSD))
    assert [case.name for case in dataset.cases] == ["a"]
    assert len(problems) == 3


def toy(labelled: int, unlabelled: int = 0) -> Dataset:
    """Cases l00, l01, ... with a label and u00, u01, ... without."""
    cases = [Case(f"l{i:02d}", (Path(f"l{i}.nii"),), Path(f"L{i}.nii")) for i in range(labelled)]
    cases += [Case(f"u{i:02d}", (Path(f"u{i}.nii"),), None) for i in range(unlabelled)]
    return Dataset(Path("root"), "toy", ("CT",), ("background", "a"), None, tuple(cases))


def splits(path: Path, **lists: Any) -> Path:
    path = path / "splits.json"
    path.write_text(json.dumps({"labeled": [], "unlabeled": [], "val": []} | lists))
    return path


def test_drawn_split_uses_every_case_once() -> None:
    dataset = toy(20, 7)
    split = choose_split(dataset, None, 6, seed=3, val_fraction=0.2)
    assert (len(split.labeled), len(split.val), split.test) == (6, 4, ())
    everything = split.labeled + split.unlabeled + split.val
    assert sorted(everything) == [case.name for case in dataset.cases]
    assert all(name.startswith("l") for name in split.labeled + split.val)


def test_drawn_split_follows_the_seed() -> None:
    draws = [choose_split(toy(20), None, 6, seed=s, val_fraction=0.2) for s in (3, 3, 4)]
    assert draws[0] == draws[1]
    assert draws[0].val != draws[2].val


def test_more_labels_extend_the_same_draw() -> None:
    few, many = (choose_split(toy(40), None, n, seed=0, val_fraction=0.2) for n in (4, 16))
    assert set(few.labeled) < set(many.labeled)
    assert few.val == many.val


def test_all_labels_are_used_unless_told_otherwise() -> None:
    split = choose_split(toy(10, 3), None, None, seed=0, val_fraction=0.2)
    assert (len(split.labeled), len(split.val)) == (8, 2)
    assert split.unlabeled == ("u00", "u01", "u02")


@pytest.mark.parametrize(
    ("labelled", "fraction", "val"),
    [(4, 0.5, 0), (5, 0.01, 1), (5, 0, 0), (10, 0.25, 2), (11, 0.25, 3)],
)
def test_number_of_validation_cases(labelled: int, fraction: float, val: int) -> None:
    assert len(choose_split(toy(labelled), None, None, 0, fraction).val) == val


@pytest.mark.parametrize(
    ("dataset", "labeled", "fraction", "message"),
    [
        (toy(10), 9, 0.2, "asked for: 9, with a label and not used otherwise: 8"),
        (toy(10), 0, 0.2, "at least 1"),
        (toy(10), -1, 0.2, "at least 1"),
        (toy(10), 2.5, 0.2, "2.5; give a whole number"),
        (toy(10), "8", 0.2, "'8'; give a whole number"),
        (toy(0, 5), None, 0.2, "root: no case has a label file"),
        (toy(5), None, 0.99, "no labelled case is left"),
        (toy(5), None, 1.0, "the share of validation cases is 1.0"),
        (toy(5), None, -0.1, "the share of validation cases is -0.1"),
        (toy(5), None, float("nan"), "the share of validation cases is nan"),
    ],
)
def test_bad_draw(dataset: Dataset, labeled: int | None, fraction: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_split(dataset, None, labeled, 0, fraction)


def test_splits_file(tmp_path: Path) -> None:
    path = splits(
        tmp_path, labeled=["l03.nii.gz", "l01"], unlabeled=["u00", "l02.nii"], test=["l04"]
    )
    split = choose_split(toy(6, 2), path, None, seed=0, val_fraction=0.5)
    assert split == Split(("l03", "l01"), ("u00", "l02"), (), ("l04",))


def test_labels_in_the_order_of_the_splits_file(tmp_path: Path) -> None:
    lists = {"labeled": ["l03", "l01"], "unlabeled": ["u00", "l05", "l02"], "val": ["l04"]}
    path = splits(tmp_path, **lists)
    one = choose_split(toy(6, 1), path, 1, 0, 0.2)
    assert (one.labeled, one.unlabeled) == (("l03",), ("l01", "u00", "l05", "l02"))
    three = choose_split(toy(6, 1), path, 3, 0, 0.2)
    assert (three.labeled, three.unlabeled) == (("l03", "l01", "l05"), ("u00", "l02"))
    assert one.val == three.val == ("l04",)
    with pytest.raises(InputError, match="asked for: 5, with a label and not used otherwise: 4"):
        choose_split(toy(6, 1), path, 5, 0, 0.2)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"labeled": ["l00", "x1", "x2", "x3", "x4"]}, "'x1', 'x2', 'x3' and 1 more are not in"),
        ({"labeled": ["../l00"]}, r"'\.\./l00' is not in root"),
        ({"labeled": ["l00", "l00"]}, "'l00' is listed more than once"),
        ({"labeled": ["l00"], "val": ["l00.nii.gz"]}, "'l00' is listed more than once"),
        ({"labeled": ["l00"], "test": ["l00"]}, "'l00' is listed more than once"),
        ({"labeled": ["u00"]}, "'u00' is in 'labeled' without a label file"),
        ({"labeled": ["l00"], "val": ["u00"]}, "in 'val' without a label file"),
        ({"labeled": ["l00"], "test": ["u00"]}, "in 'test' without a label file"),
        ({"labeled": "l00"}, "'labeled' must be a list"),
        ({"labeled": [3]}, "'labeled' must be a list of case names"),
        ({"labelled": ["l00"]}, "'labelled' is unknown or missing"),
        ({"unlabeled": ["u00"]}, "no labelled case is left"),
    ],
)
def test_bad_splits_file(tmp_path: Path, lists: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        choose_split(toy(3, 2), splits(tmp_path, **lists), None, 0, 0.2)
    assert "splits.json" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ("3", "must hold a JSON object"),
        ('{"labeled": ["l00"], "unlabeled": []}', "'val' is unknown or missing"),
    ],
)
def test_broken_splits_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "splits.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        choose_split(toy(3), path, None, 0, 0.2)
    with pytest.raises(InputError, match=r"other\.json: cannot be read \(No such file"):
        choose_split(toy(3), tmp_path / "other.json", None, 0, 0.2)


def folds(path: Path, *folds: Any) -> Path:
    path = path / "splits_final.json"
    path.write_text(json.dumps(folds))
    return path


def test_a_fold_of_nnunet(tmp_path: Path) -> None:
    """Which knows no unlabelled cases: they are those without a label."""
    one = {"train": ["l00", "l01"], "val": ["l02"]}
    two = {"train": ["l02.nii.gz", "l01"], "val": ["l00"]}
    path, dataset = folds(tmp_path, one, two), toy(4, 2)
    first = Split(("l00", "l01"), ("u00", "u01"), ("l02",))
    assert choose_split(dataset, path, None, 0, 0.2) == first
    assert choose_split(dataset, Path(f"{path}:0"), None, 0, 0.2) == first
    second = choose_split(dataset, Path(f"{path}:1"), 1, 0, 0.2)
    assert second == Split(("l02",), ("l01", "u00", "u01"), ("l00",))


FOLD = {"train": ["l00"], "val": ["l01"]}


@pytest.mark.parametrize(
    ("content", "number", "message"),
    [
        ((FOLD, FOLD), ":2", "has 2 folds, counted from 0; there is no fold 2"),
        ((), "", "has 0 folds"),
        (([["l00"], ["l01"]],), "", 'fold 0 must be {"train"'),
        (({"train": ["l00"]},), "", "fold 0 must be"),
        (({"train": "l00", "val": []},), "", "'train' must be a list of case names"),
        (({"train": ["u00"], "val": []},), "", "'u00' is in 'train' without a label file; add the"),
        (({"train": ["l00"], "val": ["l00"]},), "", "'l00' is listed more than once"),
        (({"train": ["x"], "val": ["l00"]},), "", "'x' is not in root"),
    ],
)
def test_bad_folds(tmp_path: Path, content: tuple[Any, ...], number: str, message: str) -> None:
    path = folds(tmp_path, *content)
    with pytest.raises(InputError, match=rf"splits_final\.json: .*{message}"):
        choose_split(toy(3, 2), Path(f"{path}{number}"), None, 0, 0.2)


def test_a_fold_of_a_file_without_folds(tmp_path: Path) -> None:
    path = splits(tmp_path, labeled=["l00"])
    with pytest.raises(InputError, match=r"splits\.json: holds no folds; leave out :3"):
        choose_split(toy(3), Path(f"{path}:3"), None, 0, 0.2)


def test_hidden_labels_leave_no_path() -> None:
    split = Split(("l00",), ("l01", "u00"), ("l02",), ("l03",))
    hidden = hide_labels(toy(5, 2), split)
    labels = {case.name: case.label for case in hidden.cases}
    # l03 is a test case; l04 and u01 are not mentioned
    assert labels == {"l00": Path("L0.nii"), "l01": None, "l02": Path("L2.nii"), "u00": None}
    assert not any(name in repr(hidden) for name in ("L1.nii", "L3.nii", "L4.nii", "l3.nii"))


def write(path: Path, values: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.array(values, np.uint8).reshape(-1, 1, 1)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def plain(root: Path, **values: list[int]) -> Dataset:
    for name, label in values.items():
        write(root / f"images/{name}.nii.gz", label)
        write(root / f"labels/{name}.nii.gz", label)
    return read_dataset(root)


def looked_at(dataset: Dataset) -> Survey:
    return survey(dataset, [case.name for case in dataset.cases], DataConfig())


def test_classes_of_the_plain_layout(tmp_path: Path) -> None:
    seen = looked_at(plain(tmp_path, a=[0, 1], b=[0, 2]))
    assert seen.dataset.classes == ("background", "class_1", "class_2")
    assert not seen.errors


@pytest.mark.parametrize("values", [[0, 1, 3], [1, 2], [0, 255]])
def test_values_that_are_no_classes(tmp_path: Path, values: list[int]) -> None:
    found = sorted(set(values))
    (error,) = looked_at(plain(tmp_path, a=values)).errors
    assert f"hold the values {found}" in error
    odd = next(value for value in found if found.index(value) != value)
    assert f"(look for {odd} in {tmp_path / 'labels' / 'a.nii.gz'})" in error
    assert "remap them, or declare the classes in a dataset.json" in error


def test_empty_labels_are_said_to_be_empty(tmp_path: Path) -> None:
    (error,) = looked_at(plain(tmp_path, a=[0, 0], b=[0, 0])).errors
    assert "all labels are empty: they hold 0 (background) alone" in error


def test_hidden_labels_are_never_opened(tmp_path: Path) -> None:
    dataset = plain(tmp_path, a=[0, 1], b=[0, 2], c=[0, 1], d=[0, 5])
    for name in ("b", "d"):
        (tmp_path / f"labels/{name}.nii.gz").write_bytes(b"poison")
    path = splits(tmp_path, labeled=["a"], unlabeled=["b"], val=["c"], test=["d"])
    split = choose_split(dataset, path, None, 0, 0.2)
    seen = looked_at(hide_labels(dataset, split))
    assert (seen.dataset.classes, seen.errors) == (("background", "class_1"), [])
    assert "b.nii.gz: cannot be read" in looked_at(dataset).errors[0]  # the poison works


def test_label_values() -> None:
    values = [0, 1, 3]
    check_label_values(values, classes=4, ignore=None, path=Path("a"))
    check_label_values(values, classes=2, ignore=3, path=Path("a"))
    with pytest.raises(
        InputError, match=r"a: the label holds 3, but the data set declares 0 to 2;"
    ):
        check_label_values(values, classes=3, ignore=None, path=Path("a"))
    with pytest.raises(InputError, match=r"holds 1, 3, but .* declares 0 to 0 and 2 \(ignore\)"):
        check_label_values(values, classes=1, ignore=2, path=Path("a"))


@pytest.mark.parametrize(
    ("name", "cases", "channels", "classes"),
    [
        ("hippocampus", 200, ("MRI",), ("background", "Anterior", "Posterior")),
        ("left_atrium", 80, ("LGE-MRI",), ("background", "left_atrium")),
    ],
)
def test_real_data_sets(
    real_data: Path, name: str, cases: int, channels: tuple[str], classes: tuple[str]
) -> None:
    dataset = read_dataset(real_data / name)
    assert (len(dataset.cases), dataset.channels, dataset.classes) == (cases, channels, classes)
    assert all(case.label is not None for case in dataset.cases)
    split = choose_split(dataset, real_data / name / "splits.json", 4, 0, 0.2)
    hidden = hide_labels(dataset, split)
    assert len(split.labeled) == 4
    assert sum(case.label is not None for case in hidden.cases) == 4 + len(split.val)


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((4, 5, 6), ("image",)),
        ((4, 5, 6, 1), ("image",)),
        ((4, 5, 6, 3), ("channel_0", "channel_1", "channel_2")),
        ((4, 5, 6, 1, 2), ("channel_0", "channel_1")),
    ],
)
def test_channels_that_nothing_declares_are_counted(tmp_path: Path, shape, names) -> None:
    (tmp_path / "images").mkdir()
    nib.save(nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4)), tmp_path / "images/a.nii")
    assert looked_at(read_dataset(tmp_path)).dataset.channels == names


def test_a_time_series_is_not_taken_for_channels(tmp_path: Path, cli) -> None:
    (tmp_path / "images").mkdir()
    values = np.ones((4, 5, 6, 40), np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "images/a.nii")
    seen = looked_at(read_dataset(tmp_path))
    assert any(
        "holds 40 volumes along its fourth axis, as a time" in error for error in seen.errors
    )
    code, out, _ = cli("inspect", tmp_path)
    assert code != 0
    assert "holds 40 volumes" in " ".join(out.split())
