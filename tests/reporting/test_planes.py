"""Slices with contours: their sides, their scale, and what they show of nothing."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dcamt.data.volume import read_image, read_label
from dcamt.reporting.planes import plot_planes
from dcamt.reporting.style import data_uri


def body() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RAS volume of 1 x 1 x 2 mm; one bright voxel right, anterior and superior of a structure."""
    label = np.zeros((20, 24, 12), np.int16)
    label[8:12, 9:15, 4:8] = 1
    image = np.random.default_rng(0).random(label.shape).astype(np.float32)
    image[14, 17, 9] = 100
    return image, label, np.diag([1.0, 1.0, 2.0, 1.0])


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
def test_planes_are_radiological_in_any_storage_order(codes: str) -> None:
    image, label, affine = body()
    stored = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    turned = [nib.Nifti1Image(array, affine).as_reoriented(stored) for array in (image, label)]
    arrays = [np.asarray(item.dataobj) for item in turned]
    figure = plot_planes(arrays[0], arrays[1], arrays[1], turned[0].affine, [1])
    expected = plot_planes(image, label, label, affine, [1])
    for axes, same in zip(figure.axes, expected.axes, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), same.images[0].get_array())
        assert axes.images[0].get_extent() == pytest.approx(same.images[0].get_extent())


def test_planes_put_right_on_the_left_and_keep_the_aspect() -> None:
    image, label, affine = body()
    label[14, 17, 9] = 1  # the slices stay where the block is largest
    image[14, 17, :] = image[14, :, 9] = image[:, 17, 9] = 100
    axial, coronal, sagittal = plot_planes(image, label, label, affine, [1]).axes
    for axes in (axial, coronal, sagittal):
        rows, columns = axes.images[0].get_array().shape
        row, column = np.unravel_index(axes.images[0].get_array().argmax(), (rows, columns))
        assert column < columns / 2  # right, or anterior in the sagittal plane
        assert row > rows / 2  # upwards: anterior, or superior
        left, right, bottom, top = axes.images[0].get_extent()
        assert right - left == pytest.approx(columns)
        assert top - bottom == pytest.approx(rows * (1 if axes is axial else 2))
        assert axes.get_aspect() == 1
    letters = [[text.get_text() for text in axes.texts] for axes in (axial, coronal, sagittal)]
    assert letters == [list("RLAP"), list("RLSI"), list("APSI")]


def test_real_scan_can_be_drawn(real_data: Path) -> None:
    folder = real_data / "hippocampus"
    image = read_image([folder / "imagesTr" / "hippocampus_001.nii.gz"])
    label = read_label(folder / "labelsTr" / "hippocampus_001.nii.gz").array
    figure = plot_planes(image.array[0], label, np.roll(label, 1, axis=0), image.affine, [1, 2])
    assert len(data_uri(figure, "png")) < 1e6


def test_view_is_cut_to_the_structures() -> None:
    label = np.zeros((200, 200, 100), np.int16)
    label[150:160, 20:30, 50:60] = 1
    image = np.zeros(label.shape, np.float32)
    for axes in plot_planes(image, label, label, np.eye(4), [1]).axes:
        assert max(axes.images[0].get_array().shape) < 40


def test_empty_reference_and_empty_pair_can_be_drawn() -> None:
    image, label, affine = body()
    empty = np.zeros_like(label)
    assert "slice 5 of 12" in plot_planes(image, empty, label, affine, [1]).axes[0].get_title()
    assert "slice 7 of 12" in plot_planes(image, empty, empty, affine, [1]).axes[0].get_title()
