"""Which entries of a data set's folders are volumes, and which label belongs to which scan."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dcamt.config import Config
from dcamt.data.dataset import Dataset, read_dataset, scan_dataset
from dcamt.data.folder import by_case
from dcamt.data.inspect import inspect
from dcamt.data.scans import find_scans
from dcamt.errors import InputError
from dcamt.evaluation.evaluate import evaluate
from dcamt.runs.plan import plan_run


def touch(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def labels_of(dataset: Dataset) -> dict[str, str | None]:
    return {case.name: case.label and case.label.name for case in dataset.cases}


def save(path: Path, *values: int) -> Path:
    """A volume of 4 x 4 x 4 voxels that begins with ``values``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((4, 4, 4), np.uint8)
    array.flat[: len(values)] = values
    nib.save(nib.Nifti1Image(array, np.diag((2.0, 2, 2, 1))), path)
    return path


NEIGHBOURS = [
    *("@eaDir/a.nii.gz/SYNOFILE_THUMB_M.png", "@eaDir/a.nii.gz/x.nii.gz", "._a.nii.gz"),
    *(".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/images/._a.nii.gz", "__MACOSX/b.nii.gz"),
    *(".datalad/config", ".git/annex/b.nii.gz", "lost+found/c.nii.gz", "$RECYCLE.BIN/d.nii.gz"),
    *("#recycle/e.nii.gz", "System Volume Information/f.dcm", "a.json", "notes.txt"),
]


def test_what_systems_leave_in_folders_is_passed_over(tmp_path: Path) -> None:
    files = ["images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz"]
    left = [f"{folder}/{name}" for folder in ("images", "labels") for name in NEIGHBOURS]
    dataset, problems = scan_dataset(touch(tmp_path, *files, *left))
    assert (labels_of(dataset), problems) == ({"a": "a.nii.gz", "b": None}, [])
    unread: list[Path] = []
    assert [scan.name for scan in find_scans(tmp_path / "images", 1, unread)] == ["a", "b"]
    assert unread == []


def test_what_systems_leave_is_no_prediction(tmp_path: Path) -> None:
    for folder in ("predictions", "labels"):
        save(tmp_path / folder / "a.nii.gz", 1)
        touch(tmp_path / folder, *NEIGHBOURS)
    result = evaluate(tmp_path / "predictions", tmp_path / "labels")
    assert (result["mean"]["dice"], result["not_predicted"]) == (1, 0)


@pytest.mark.parametrize("ending", [
    ".seg.nrrd", ".Seg.nrrd", "_seg.nrrd", "-label.nrrd", "_label.nrrd", ".label.nrrd",
    ".seg.nii.gz", "-segmentation.mha", "_mask.nii", "-labelmap.nrrd", ".nrrd",
])  # fmt: skip
def test_a_label_that_says_so_in_its_name_belongs_to_its_scan(tmp_path: Path, ending: str) -> None:
    root = touch(tmp_path, "images/p_2019.nrrd", "images/u.nrrd", f"labels/p_2019{ending}")
    assert labels_of(read_dataset(root)) == {"p_2019": f"p_2019{ending}", "u": None}


def test_such_labels_belong_to_scans_of_several_files_as_well(tmp_path: Path) -> None:
    images = [f"images/{case}_000{i}.nrrd" for case in ("p", "u") for i in (0, 1)]
    dataset = read_dataset(touch(tmp_path, *images, "labels/p.seg.nrrd"))
    assert labels_of(dataset) == {"p": "p.seg.nrrd", "u": None}
    assert dataset.channels == ("channel_0", "channel_1")


def test_the_exact_name_comes_first(tmp_path: Path) -> None:
    """A scan may be called a_seg itself."""
    root = touch(tmp_path, *(f"{f}/{n}.nrrd" for f in ("images", "labels") for n in ("a", "a_seg")))
    assert labels_of(read_dataset(root)) == {"a": "a.nrrd", "a_seg": "a_seg.nrrd"}


@pytest.mark.parametrize("other", ["a.nrrd", "a-label.nrrd"])
def test_two_labels_of_one_scan_are_refused(tmp_path: Path, other: str) -> None:
    root = touch(tmp_path, "images/a.nrrd", "labels/a.seg.nrrd", f"labels/{other}")
    with pytest.raises(InputError, match=r"case a has another label as well; remove one"):
        read_dataset(root)


def test_a_label_among_the_images_is_no_unlabelled_scan(tmp_path: Path) -> None:
    """3D Slicer saves CASE.seg.nrrd beside CASE.nrrd."""
    root = touch(tmp_path, "images/a.nrrd", "images/a.seg.nrrd", "labels/x.txt")
    with pytest.raises(InputError, match=r"a\.seg\.nrrd: lies among the images, but is by its nam"):
        read_dataset(root)
    unread: list[Path] = []
    assert [scan.name for scan in find_scans(root / "images", 1, unread)] == ["a"]
    assert [path.name for path in unread] == ["a.seg.nrrd"]


def test_labels_keep_their_names_where_no_case_or_several_claim_them() -> None:
    names = ("a.seg", "b.seg", "b_label", "c", "c.seg")
    files = {name: Path(name) for name in names}
    assert by_case(files, {"a", "b", "c"}) == {
        "a": Path("a.seg"),
        **{name: Path(name) for name in names[1:]},
    }


def test_evaluation_pairs_as_training_does(tmp_path: Path) -> None:
    save(tmp_path / "predictions/a.nii.gz", 1, 1)
    save(tmp_path / "labels/a.seg.nii.gz", 1, 1)
    save(tmp_path / "labels/b.seg.nii.gz", 1)
    result = evaluate(tmp_path / "predictions", tmp_path / "labels")
    assert [row["case"] for row in result["cases"]] == ["a"]
    assert (result["mean"]["dice"], result["not_predicted"]) == (1, 1)
    turned = evaluate(tmp_path / "labels/a.seg.nii.gz", tmp_path / "predictions")
    assert turned["mean"]["dice"] == 1


ODD = [
    *("a b.v2", "F\u00e4lle#1 & <b>[bold]x[red]", "case", "case_1", "-rf [x]", "a&b", "<i>x"),
    *("p%20q", "[red]r", "it's", "d#1?"),
]


def test_odd_names_are_names(tmp_path: Path) -> None:
    files = [f"{folder}/{name}.nii.gz" for folder in ("images", "labels") for name in ODD]
    dataset = read_dataset(touch(tmp_path, *files))
    assert labels_of(dataset) == {name: f"{name}.nii.gz" for name in sorted(ODD)}
    assert [scan.name for scan in find_scans(tmp_path / "images", 1)] == sorted(ODD)


def test_endings_in_capitals_are_endings(tmp_path: Path) -> None:
    root = touch(tmp_path, "images/a.NII.GZ", "images/b.Nii.gz", "labels/a.NII.GZ")
    assert labels_of(read_dataset(root)) == {"a": "a.NII.GZ", "b": None}


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["knee_0000", "knee_2019"], ["knee_0000", "knee_2019"]),
        (["knee_0000", "hip_0000"], ["hip", "knee"]),
        (["knee_2019"], ["knee_2019"]),
    ],
)
def test_four_digits_are_a_channel_where_every_name_ends_in_0000(
    tmp_path: Path, files: list[str], names: list[str]
) -> None:
    touch(tmp_path, *(f"{name}.nii.gz" for name in files))
    assert [scan.name for scan in find_scans(tmp_path, 1)] == names


@pytest.mark.parametrize(
    ("files", "channels", "names"),
    [
        (["scan_0000", "scan_0001", "scan_0002"], None, ["scan_0000", "scan_0001", "scan_0002"]),
        (["amos_0001", "amos_0002"], None, ["amos_0001", "amos_0002"]),
        (["a_0000", "b_0000"], None, ["a", "b"]),
        (["a_0000"], None, ["a"]),
        (["a_0000", "a_0001", "b_0000", "b_0001"], None, ["a", "b"]),
        (["scan_0000", "scan_0001"], ["T1", "T2"], ["scan"]),
    ],
)
def test_four_digits_without_any_label(
    tmp_path: Path, files: list[str], channels: list[str] | None, names: list[str]
) -> None:
    touch(tmp_path / "images", *(f"{name}.nii.gz" for name in files))
    if channels:
        told = {"channel_names": dict(enumerate(channels)), "labels": {"background": 0, "x": 1}}
        (tmp_path / "dataset.json").write_text(json.dumps(told))
    assert [case.name for case in read_dataset(tmp_path).cases] == names


# ---------------------------------------------------------------------------------------- links


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """Labelled cases a, b and unlabelled c, d; every file is a link into a store, as datalad's."""
    root = tmp_path / "data"
    for number, name in enumerate(
        ("images/a", "images/b", "images/c", "images/d", "labels/a", "labels/b")
    ):
        target = save(root / f".store/{number}.nii.gz", 1, 1)
        link = root / f"{name}.nii.gz"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(target, link.parent))
    return root


def test_links_are_the_files_they_lead_to(linked: Path) -> None:
    assert labels_of(read_dataset(linked)) == {
        "a": "a.nii.gz",
        "b": "b.nii.gz",
        "c": None,
        "d": None,
    }
    assert inspect(linked).errors == []


@pytest.mark.parametrize("name", ["images/a", "images/c", "labels/b"])
def test_a_link_to_what_was_not_fetched_is_named(linked: Path, name: str) -> None:
    """A label that is not there must not make its case an unlabelled one."""
    link = linked / f"{name}.nii.gz"
    link.resolve().unlink()
    assert [case.label is None for case in read_dataset(linked).cases] == [False, False, True, True]
    wanted = f"{link}: is a link whose target is not there; fetch its content"
    assert [error[: len(wanted)] for error in inspect(linked).errors] == [wanted]
    with pytest.raises(InputError, match=r"gz: is a link whose target is not there"):
        plan_run(linked, Config(), None, None)


@pytest.mark.parametrize(
    "content",
    ["/annex/objects/MD5E-s99--0cc1.nii.gz\n", "version https://git-lfs.github.com/spec/v1\noid x"],
)
def test_a_placeholder_is_no_damaged_file(linked: Path, content: str) -> None:
    (linked / "labels/b.nii.gz").resolve().write_text(content)
    (error,) = inspect(linked).errors
    assert "labels/b.nii.gz: is a placeholder of a file that is not there; fetch its" in error


def test_slices_that_were_not_fetched_are_no_empty_folder(tmp_path: Path) -> None:
    root = touch(tmp_path, "images/a.nii.gz", "images/b/notes.txt")
    (root / "images/b/000001").symlink_to(root / ".git/annex/x")
    with pytest.raises(InputError, match="b: holds links whose targets are not there; fetch"):
        read_dataset(root)


def test_only_what_is_used_must_have_been_fetched(linked: Path) -> None:
    (linked / "labels/b.nii.gz").resolve().unlink()
    splits = linked / "splits.json"
    splits.write_text('{"labeled": ["a"], "unlabeled": ["b", "c", "d"], "val": []}')
    assert inspect(linked, splits).errors == []


@pytest.mark.parametrize("name", ["labels", "imagesUn"])
def test_a_folder_that_leads_nowhere_is_not_an_empty_one(tmp_path: Path, name: str) -> None:
    root = touch(tmp_path, "images/a.nii.gz")
    (root / name).symlink_to(root / "elsewhere")
    with pytest.raises(InputError, match=rf"{name}: is a link whose target is not there"):
        read_dataset(root)


def test_a_scan_folder_that_leads_nowhere_is_still_a_case(tmp_path: Path) -> None:
    root = touch(tmp_path, "images/a.nii.gz")
    (root / "images/b.v2").symlink_to(root / "slices")
    (root / "images/b.json").symlink_to(root / "sidecar")
    assert [case.name for case in read_dataset(root).cases] == ["a", "b.v2"]
    assert [scan.name for scan in find_scans(root / "images", 1)] == ["a", "b.v2"]
    with pytest.raises(InputError, match=r"b\.v2: is a link whose target is not there"):
        find_scans(root / "images/b.v2", 1)


def test_links_that_lead_nowhere_are_told_by_evaluation(linked: Path) -> None:
    (linked / "labels/a.nii.gz").resolve().unlink()
    with pytest.raises(InputError, match=r"a\.nii\.gz: is a link whose target is not there"):
        evaluate(linked / "images/a.nii.gz", linked)
