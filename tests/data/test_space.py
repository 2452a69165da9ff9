import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from dcamt.config import Normalization, Plan
from dcamt.data.space import (
    label_to_network,
    lost_labels,
    normalize,
    place,
    restore,
    spacing_along,
    to_network,
)
from dcamt.data.volume import Volume
from dcamt.types import IGNORE

AXES = (("R", "L"), ("A", "P"), ("S", "I"))
CODES = [
    "".join(pair[flip] for pair, flip in zip(pairs, flips, strict=True))
    for pairs in itertools.permutations(AXES)
    for flips in itertools.product((0, 1), repeat=3)
]
AS_IT_IS = Normalization(scheme="window", low=-1e9, high=1e9, mean=0.0, std=1.0)

codes = st.sampled_from(CODES)
spacings = st.tuples(*[st.sampled_from((0.6, 1.0, 1.5, 3.0))] * 3)
angles = st.tuples(*[st.floats(-12, 12)] * 3)
shapes = st.tuples(*[st.integers(5, 9)] * 3)


def affine_of(code, spacing, degrees=(0.0, 0.0, 0.0), origin=(-30.0, 12.5, 7.0)):
    """Voxel axes along the directions of ``code``, tilted by ``degrees`` about the world axes."""
    matrix = np.zeros((3, 3))
    for axis, letter in enumerate(code):
        world = next(w for w, pair in enumerate(AXES) if letter in pair)
        matrix[world, axis] = spacing[axis] * (1 if letter in "RAS" else -1)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ matrix
    affine[:3, 3] = origin
    return affine


def plan_of(spacing, orientation="RAS", crop=True, ignore=None, channels=1, how=AS_IT_IS):
    return Plan(
        channels=tuple(f"c{i}" for i in range(channels)),
        classes=("background", "one", "two"),
        ignore=ignore,
        orientation=orientation,
        spacing=spacing,
        crop=crop,
        normalization=(how,) * channels,
        patch=(16, 16, 16),
    )


def world_of(shape, affine):
    """World coordinates of every voxel centre, (3, X, Y, Z) mm: an image that says where it is."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    return np.einsum("ij,jxyz->ixyz", affine[:3, :3], grid) + affine[:3, 3][:, None, None, None]


def native(image, orientation="RAS", crop=False, **others):
    """A plan that resamples nothing."""
    _, placement = place(image, orientation, crop)
    spacing = spacing_along(image, placement)
    return plan_of(spacing, orientation, crop, channels=len(image.array), **others)


def one_hot(label, count=3):
    return torch.from_numpy(np.stack([label == k for k in range(count)]).astype(np.float32))


def ball(shape, affine, radius):
    """A ball of ``radius`` mm off the middle of the volume, and a second one inside it."""
    world = world_of(shape, affine)
    middle = affine[:3, :3] @ (np.array(shape) * 0.45) + affine[:3, 3]
    distance = np.linalg.norm(world - middle[:, None, None, None], axis=0)
    return ((distance < radius).astype(np.int16) + (distance < 0.6 * radius)).astype(np.int16)


@given(codes, codes, spacings, angles, shapes)
@settings(max_examples=60, deadline=None)
def test_without_resampling_the_way_back_is_exact(code, orientation, spacing, degrees, shape):
    affine = affine_of(code, spacing, degrees)
    rng = np.random.default_rng(0)
    array = np.zeros((2, *shape), np.float32)
    label = np.zeros(shape, np.int16)
    # Content that touches neither border, so that the crop has something to cut off.
    array[:, 1:-2, 2:-1, 1:-1] = rng.uniform(1, 2, array[:, 1:-2, 2:-1, 1:-1].shape)
    label[1:-2, 2:-1, 1:-1] = rng.integers(0, 3, label[1:-2, 2:-1, 1:-1].shape)
    image = Volume(array, affine)
    plan = native(image, orientation, crop=True)

    prepared, placement = to_network(image, plan)
    assert sorted(prepared.shape[1:]) == sorted((shape[0] - 3, shape[1] - 3, shape[2] - 2))
    np.testing.assert_array_equal(restore(torch.from_numpy(prepared), placement), array)

    ready = label_to_network(Volume(label, affine), placement, plan)
    assert ready.shape == prepared.shape[1:]
    back = restore(one_hot(ready), placement)
    np.testing.assert_array_equal(back[1] + 2 * back[2], label)


@given(codes, spacings, angles, shapes)
@settings(max_examples=40, deadline=None)
def test_ras_agrees_with_nibabel(code, spacing, degrees, shape):
    affine = affine_of(code, spacing, degrees)
    array = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(array[0], affine))
    image = Volume(array, affine)
    prepared, placement = place(image, "RAS", crop=False)
    np.testing.assert_array_equal(prepared[0], canonical.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(spacing_along(image, placement), canonical.header.get_zooms())


@given(codes, codes, spacings, angles)
@settings(max_examples=40, deadline=None)
def test_prepared_axes_point_where_the_orientation_says(code, orientation, spacing, degrees):
    shape = (7, 8, 9)
    affine = affine_of(code, spacing, degrees)
    image = Volume(world_of(shape, affine).astype(np.float32), affine)
    prepared, placement = to_network(image, native(image, orientation))
    for axis, letter in enumerate(orientation):
        step = np.take(prepared, 3, axis + 1) - np.take(prepared, 2, axis + 1)
        step = step.reshape(3, -1).mean(1)
        assert "RLAPSI"[2 * abs(step).argmax() + int(step[abs(step).argmax()] < 0)] == letter
        np.testing.assert_allclose(
            np.linalg.norm(step), spacing_along(image, placement)[axis], rtol=1e-4
        )


def test_a_landmark_keeps_its_world_coordinates_through_crop_and_turn():
    affine = affine_of("PIR", (0.8, 1.1, 2.0), (4, -7, 10))
    array = np.zeros((1, 12, 13, 14), np.float32)
    array[0, 3:9, 4:11, 2:10] = 1
    array[0, 5, 8, 3] = 100  # the landmark
    prepared, placement = place(Volume(array, affine), "RAS", crop=True)
    found = np.argwhere(prepared[0] == 100)[0] + [part.start for part in placement.box]
    canonical = nib.as_closest_canonical(nib.Nifti1Image(array[0], affine))
    np.testing.assert_allclose(
        nib.affines.apply_affine(canonical.affine, found),
        nib.affines.apply_affine(affine, (5, 8, 3)),
    )


@given(codes, codes, spacings, st.tuples(*[st.sampled_from((0.9, 1.25, 2.0))] * 3))
@settings(max_examples=40, deadline=None)
def test_resampling_moves_nothing(code, orientation, spacing, wanted):
    """World coordinates, resampled there and back, are still those of their voxels."""
    affine = affine_of(code, spacing, (5, -3, 8))
    world = world_of((18, 17, 16), affine).astype(np.float32)
    image = Volume(world, affine)
    plan = plan_of(wanted, orientation, crop=False, channels=3)
    prepared, placement = to_network(image, plan)
    extent = np.array(spacing_along(image, placement)) * placement.cropped
    np.testing.assert_allclose(prepared.shape[1:], extent / np.array(wanted), atol=0.5)
    for axis, size in enumerate(prepared.shape[1:]):  # both grids cover the same extent
        steps = np.linalg.norm(np.diff(prepared, axis=axis + 1), axis=0)
        np.testing.assert_allclose(np.median(steps), extent[axis] / size, rtol=1e-3)

    back = restore(torch.from_numpy(prepared), placement)
    # The outermost voxels of either grid are clamped, not interpolated.
    inside = [
        slice(n, -n) for n in (int(np.ceil(max(wanted) / min(s, max(wanted)))) + 1 for s in spacing)
    ]
    assert back[:, *inside].size
    np.testing.assert_allclose(back[:, *inside], world[:, *inside], atol=2e-3)


@pytest.mark.parametrize("code", ["RAS", "LPS", "SAL", "PIR", "IRP"])
@pytest.mark.parametrize(
    ("spacing", "wanted"),
    [((1, 1, 1), (1.5, 1.5, 1.5)), ((0.7, 0.7, 3), (1, 1, 1)), ((1, 1.2, 0.8), (0.8, 1.5, 1.0))],
)
def test_with_resampling_shapes_survive(code, spacing, wanted):
    affine = affine_of(code, spacing, (6, 9, -4))
    shape = tuple(int(30 / s) for s in spacing)
    label = ball(shape, affine, 10)
    image = Volume(np.ones((1, *shape), np.float32), affine)
    plan = plan_of(wanted)
    _, placement = to_network(image, plan)
    ready = label_to_network(Volume(label, affine), placement, plan)
    back = restore(one_hot(ready), placement).argmax(0)
    for k in (1, 2):
        dice = 2 * ((back == k) & (label == k)).sum() / ((back == k).sum() + (label == k).sum())
        assert dice > 0.9


def test_resampled_label_against_a_slow_reference():
    """Every prepared voxel takes the value with the largest trilinear share."""
    affine = affine_of("LPS", (1, 1, 2))
    label = np.random.default_rng(5).integers(0, 4, (9, 8, 5)).astype(np.int16)
    image = Volume(np.ones((1, *label.shape), np.float32), affine)
    plan = plan_of((1.3, 0.9, 1.1), ignore=3)
    prepared, placement = to_network(image, plan)
    ready = label_to_network(Volume(label, affine), placement, plan)
    assert ready.shape == prepared.shape[1:]

    turned = label[::-1, ::-1]  # LPS to RAS
    points = [
        (np.arange(m) + 0.5) * n / m - 0.5 for n, m in zip(label.shape, ready.shape, strict=True)
    ]
    grid = np.stack(np.meshgrid(*points, indexing="ij"))
    shares = np.stack(
        [
            map_coordinates((turned == v).astype(float), grid, order=1, mode="nearest")
            for v in range(4)
        ]
    )
    expected = np.array([0, 1, 2, IGNORE])[shares.argmax(0)]
    top = np.sort(shares, axis=0)
    clear = top[-1] - top[-2] > 1e-5  # ties may go either way
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(ready[clear], expected[clear])


def test_ignored_voxels_are_marked_and_nothing_else():
    affine = affine_of("RAS", (1, 1, 1))
    label = np.zeros((6, 6, 6), np.int16)
    label[:2], label[2:4] = 1, 7
    image = Volume(np.ones((1, 6, 6, 6), np.float32), affine)
    plan = native(image, ignore=7)
    _, placement = to_network(image, plan)
    ready = label_to_network(Volume(label, affine), placement, plan)
    assert ready.dtype == np.int8
    np.testing.assert_array_equal(ready, np.where(label == 7, IGNORE, label))

    without = label_to_network(Volume(np.minimum(label, 2), affine), placement, native(image))
    assert without.min() == 0


def test_outside_the_crop_zeros_are_filled_in():
    array = np.zeros((1, 8, 8, 8), np.float32)
    array[0, 2:5, 3:6, 1:7] = 4
    image = Volume(array, np.diag([1.0, 1, 1, 1]))
    prepared, placement = to_network(image, native(image, crop=True))
    back = restore(torch.from_numpy(prepared) - 7, placement)
    np.testing.assert_array_equal(back, np.where(array == 4, -3, 0))


@pytest.mark.parametrize("crop", [True, False])
def test_a_scan_of_zeros_is_kept_whole(crop):
    image = Volume(np.zeros((1, 5, 6, 7), np.float32), np.eye(4))
    prepared, _ = to_network(image, native(image, crop=crop, how=Normalization()))
    assert prepared.shape == (1, 5, 6, 7)
    assert not prepared.any()


def test_crop_keeps_what_any_channel_shows():
    array = np.zeros((2, 9, 9, 9), np.float32)
    array[0, 2:4, 4, 4] = -1
    array[1, 3, 4:7, 4] = 5
    cropped, placement = place(Volume(array, np.eye(4)), "RAS", crop=True)
    assert cropped.shape == (2, 2, 3, 1)
    assert placement.box == (slice(2, 4), slice(4, 7), slice(4, 5))


@pytest.mark.parametrize("code", ["RAS", "LPS", "SAL"])
def test_labelled_voxels_that_the_crop_loses_are_counted(code):
    array = np.zeros((1, 8, 9, 10), np.float32)
    array[0, 2:5, 3:6, 1:7] = 4
    label = np.zeros((8, 9, 10), np.int16)
    label[2:5, 3:6, 5:9] = 2  # the last two of four layers lie outside
    affine = affine_of(code, (1, 1, 1))
    image = Volume(array, affine)
    _, placement = place(image, "RAS", crop=True)
    assert lost_labels(Volume(label, affine), placement) == (18, 36)
    _, whole = place(image, "RAS", crop=False)
    assert lost_labels(Volume(label, affine), whole) == (0, 36)
    assert lost_labels(Volume(label * 0, affine), placement) == (0, 0)
    assert lost_labels(Volume(label, affine), placement, ignore=2) == (0, 0)


def test_zscore_has_mean_zero_and_variance_one():
    values = np.random.default_rng(0).normal(500, 30, (8, 9, 10)).astype(np.float32)
    result = normalize(values, Normalization())
    assert result.dtype == np.float32
    assert abs(result.mean()) < 1e-4
    assert result.std() == pytest.approx(1, abs=1e-4)
    assert np.corrcoef(values.ravel(), result.ravel())[0, 1] == pytest.approx(1)


def test_zscore_of_large_values_does_not_lose_their_spread():
    values = (np.random.default_rng(0).normal(0, 1, (40, 40, 40)) + 1e5).astype(np.float32)
    assert normalize(values, Normalization()).std() == pytest.approx(1, abs=1e-2)


def test_a_constant_image_becomes_zeros():
    np.testing.assert_array_equal(
        normalize(np.full((4, 4, 4), 1234.5, np.float32), Normalization()), np.zeros((4, 4, 4))
    )


def test_window_clips_then_scales():
    how = Normalization(scheme="window", low=-100, high=200, mean=50, std=25)
    values = np.array([-1000, -100, 0, 50, 75, 200, 3000], np.float32)
    np.testing.assert_allclose(normalize(values, how), [-6, -6, -2, 0, 1, 6, 6])


def test_each_channel_has_its_own_normalisation():
    array = np.random.default_rng(0).uniform(10, 90, (2, 6, 6, 6)).astype(np.float32)
    window = Normalization(scheme="window", low=20, high=80, mean=50, std=10)
    plan = plan_of((1, 1, 1), channels=2).model_copy(
        update={"normalization": (Normalization(), window)}
    )
    prepared, _ = to_network(Volume(array, np.eye(4)), plan)
    assert abs(prepared[0].mean()) < 1e-5
    np.testing.assert_allclose(prepared[1], (array[1].clip(20, 80) - 50) / 10, rtol=1e-5)
