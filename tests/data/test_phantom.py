"""The drawn data set: layout, determinism, geometry, and that it is hard but possible."""

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import label as components

from dcamt.data.phantom import draw_phantom, write_phantoms
from dcamt.errors import InputError


def digests(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms")
    write_phantoms(root, cases=5, labeled=2, val=1)
    return root


def test_writes_the_decathlon_layout(phantoms: Path) -> None:
    description = json.loads((phantoms / "dataset.json").read_text())
    assert description["labels"] == {"0": "background", "1": "atrium"}
    assert description["numTraining"] == len(description["training"]) == 5
    for case in description["training"]:
        image, label = nib.load(phantoms / case["image"]), nib.load(phantoms / case["label"])
        assert np.issubdtype(image.get_data_dtype(), np.integer)
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        assert set(np.unique(label.dataobj)) == {0, 1}


def test_split_names_every_case_once(phantoms: Path) -> None:
    split = json.loads((phantoms / "splits.json").read_text())
    assert [len(split[key]) for key in ("labeled", "unlabeled", "val")] == [2, 2, 1]
    files = {path.name.removesuffix(".nii.gz") for path in (phantoms / "imagesTr").iterdir()}
    assert set().union(*split.values()) == files
    assert sum(map(len, split.values())) == len(files)


def test_same_arguments_write_the_same_bytes(phantoms: Path, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "again", cases=5, labeled=2, val=1)
    assert digests(tmp_path / "again") == digests(phantoms)


def test_a_case_does_not_depend_on_how_many_are_drawn(phantoms: Path, tmp_path: Path) -> None:
    write_phantoms(tmp_path, cases=2, labeled=1, val=1)
    name = "imagesTr/phantom_001.nii.gz"
    assert digests(tmp_path)[name] == digests(phantoms)[name]


def test_another_seed_draws_other_cases(phantoms: Path, tmp_path: Path) -> None:
    write_phantoms(tmp_path, cases=2, labeled=1, val=1, seed=1)
    ours, theirs = digests(tmp_path), digests(phantoms)
    assert all(ours[name] != theirs[name] for name in ours if name.endswith(".nii.gz"))


def test_refuses_a_folder_that_holds_another_data_set(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"name": "Heart"}')
    with pytest.raises(InputError, match="another data set"):
        write_phantoms(tmp_path, cases=2, labeled=1, val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


@pytest.mark.parametrize(("labeled", "val"), [(0, 1), (1, 0), (2, 2)])
def test_refuses_a_split_that_does_not_add_up(tmp_path: Path, labeled: int, val: int) -> None:
    with pytest.raises(InputError, match="cannot split 3 phantoms"):
        write_phantoms(tmp_path, cases=3, labeled=labeled, val=val)


@pytest.mark.parametrize("classes", [1, 4])
def test_refuses_other_numbers_of_classes(classes: int) -> None:
    with pytest.raises(InputError, match="2 or 3 classes"):
        draw_phantom(np.random.default_rng(0), classes=classes)


def test_the_grid_is_the_one_asked_for() -> None:
    image, label = draw_phantom(np.random.default_rng(0), (40, 30, 20), (1.2, 1.1, 2.0))
    assert image.array.shape == (1, 40, 30, 20)
    assert image.array.dtype == np.float32
    assert label.array.shape == (40, 30, 20)
    assert label.array.dtype == np.int16
    axes = image.affine[:3, :3]
    np.testing.assert_allclose(np.linalg.norm(axes, axis=0), (1.2, 1.1, 2.0))
    assert np.linalg.det(axes) < 0
    assert np.count_nonzero(np.abs(axes) > 1e-3) > 3, "the affine is not oblique"
    np.testing.assert_array_equal(image.affine, label.affine)


def test_the_third_class_only_renames_veins() -> None:
    image, two = draw_phantom(np.random.default_rng(3), classes=2)
    same, three = draw_phantom(np.random.default_rng(3), classes=3)
    np.testing.assert_array_equal(image.array, same.array)
    np.testing.assert_array_equal(two.array > 0, three.array > 0)
    assert set(np.unique(three.array)) == {0, 1, 2}


def test_the_anatomy_has_the_size_of_its_ellipsoid_in_mm() -> None:
    """A body of radii 10-15, 8-12, 9-13 mm holds 3.0-9.8 ml, give or take its waves."""
    for case in range(3):
        _, label = draw_phantom(np.random.default_rng(case), (64, 64, 44), classes=3)
        body = np.count_nonzero(label.array == 1) * 1.0 * 1.0 * 1.5 / 1000
        assert 2 < body < 13
        _, pieces = components(label.array > 0, np.ones((3, 3, 3)))
        assert pieces == 1, "the veins have come off the atrium"


def test_intensity_alone_does_not_find_the_atrium() -> None:
    """The best threshold, chosen with the label at hand, must stay far from a segmentation."""
    scores = []
    for case in range(4):
        image, label = draw_phantom(np.random.default_rng(case))
        truth = label.array > 0
        dice = []
        for level in np.quantile(image.array[0], np.linspace(0.5, 0.98, 25)):
            found = image.array[0] > level
            dice.append(2 * np.count_nonzero(found & truth) / (found.sum() + truth.sum()))
        scores.append(max(dice))
    assert np.mean(scores) < 0.6


def test_the_atrium_is_brighter_than_its_wall() -> None:
    """The boundary is in the image: just outside is darker than just inside."""
    from scipy.ndimage import binary_dilation, binary_erosion  # noqa: PLC0415

    for case in range(4):
        image, label = draw_phantom(np.random.default_rng(case), classes=3)
        body = label.array == 1
        inside = binary_erosion(body) & ~binary_erosion(body, iterations=3)
        outside = binary_dilation(label.array > 0, iterations=2) & (label.array == 0)
        assert image.array[0][inside].mean() > 1.15 * image.array[0][outside].mean()
