import shutil
from dataclasses import replace

import numpy as np
import pytest

from dcamt.config import DataConfig
from dcamt.data.dataset import Dataset, read_dataset
from dcamt.data.plan import (
    PATCH_VOXELS,
    Fingerprint,
    check_plan,
    make_plan,
    plan_patch,
    plan_spacing,
)
from dcamt.data.split import choose_split, hide_labels
from dcamt.data.survey import fingerprint, survey
from dcamt.data.volume import read_image, read_label, write_volume
from dcamt.errors import InputError


def found(spacings, shapes=None, foreground=None, lost=0, inside=1.0):
    spacings = np.array(spacings, float)
    shapes = np.full(spacings.shape, 64) if shapes is None else np.array(shapes)
    foreground = np.zeros((0, 1), np.float32) if foreground is None else foreground
    share = np.full(len(spacings), inside)
    values = np.asarray(foreground, np.float32)
    return Fingerprint(shapes + 32, shapes, spacings, share, lost, values)


def look_at(dataset, cases, data=None):
    """The fingerprint of ``cases``; InputError for the first of their errors."""
    dataset = replace(dataset, cases=tuple(cases))
    seen = survey(dataset, [case.name for case in cases], data or DataConfig())
    if seen.errors:
        raise InputError(seen.errors[0])
    return fingerprint(seen.looks)


def dataset_of(tmp_path, channels=("MR",), ignore=None, classes=("background", "organ")):
    return Dataset(tmp_path, "set", channels, classes, ignore, ())


def labelled(root):
    """The data set as training sees it, and its training cases."""
    full = read_dataset(root)
    split = choose_split(full, root / "splits.json", None, 0, 0.2)
    visible = hide_labels(full, split)
    visible = survey(visible, split.labeled, DataConfig()).dataset
    return visible, [visible.case(n) for n in (*split.labeled, *split.unlabeled)], split


def test_spacing_is_the_median_of_each_axis():
    spacings = [(1, 1, 1), (1, 2, 2.5), (0.5, 1.5, 2), (0.9, 1.2, 1.1), (1.1, 1.3, 1.4)]
    assert plan_spacing(found(spacings)) == (1.0, 1.3, 1.4)


def test_a_coarse_axis_takes_its_tenth_percentile():
    thickness = np.linspace(3, 8, 11)
    spacings = [(0.8, 0.8, t) for t in thickness]
    assert plan_spacing(found(spacings)) == (0.8, 0.8, 3.5)
    turned = [(t, 0.8, 0.8) for t in thickness]
    assert plan_spacing(found(turned)) == (3.5, 0.8, 0.8)


def test_three_times_the_finest_axis_is_not_yet_coarse():
    spacings = [(1, 1, 3.0), (1, 1, 2.0), (1, 1, 3.0), (1, 1, 3.0)]
    assert plan_spacing(found(spacings)) == (1, 1, 3)


@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((35, 50, 35), (32, 48, 32)),
        ((8, 1, 16), (16, 16, 16)),
        ((112, 112, 80), (112, 112, 80)),
        ((41, 39, 100), (48, 32, 96)),
    ],
)
def test_the_patch_is_the_median_volume_to_the_nearest_stride(shape, patch):
    assert plan_patch(np.array(shape, float)) == patch


@pytest.mark.parametrize("shape", [(512, 512, 300), (2000, 20, 30), (113, 113, 81), (640, 640, 90)])
def test_a_large_patch_shrinks_along_its_longest_sides(shape):
    patch = plan_patch(np.array(shape, float))
    full = [max(16, round(n / 16) * 16) for n in shape]
    assert np.prod(patch) <= PATCH_VOXELS
    assert all(p % 16 == 0 and p >= 16 for p in patch)
    shrunk = [p for p, f in zip(patch, full, strict=True) if p < f]
    kept = [p for p, f in zip(patch, full, strict=True) if p == f]
    # What shrank is still about as long as anything that did not have to.
    assert all(p + 16 >= k for p in shrunk for k in kept)
    if shrunk:
        grown = list(patch)
        grown[int(np.argmin([p if p in shrunk else np.inf for p in patch]))] += 16
        assert np.prod(grown) > PATCH_VOXELS


def test_patch_is_measured_in_voxels_of_the_planned_spacing(tmp_path):
    shapes, spacings = [(100, 100, 20)] * 3, [(1, 1, 2.5)] * 3
    assert make_plan(
        dataset_of(tmp_path), found(spacings, shapes), DataConfig(spacing=(2, 2, 2))
    ).patch == (48, 48, 32)


@pytest.mark.parametrize("patch", [(16, 16, 20), (15, 16, 16), (112, 112, 81)])
def test_a_patch_off_the_stride_is_refused(tmp_path, patch):
    with pytest.raises(InputError, match=r"data\.patch .* multiple of 16"):
        make_plan(dataset_of(tmp_path), found([(1, 1, 1)]), DataConfig(patch=patch))


def test_mr_is_normalised_per_volume(tmp_path):
    plan = make_plan(dataset_of(tmp_path), found([(1, 1, 1)]), DataConfig())
    assert [n.scheme for n in plan.normalization] == ["zscore"]


@pytest.mark.parametrize("name", ["CT", "ct", " Ct "])
def test_ct_is_known_by_its_channel_name(tmp_path, name):
    values = np.random.default_rng(0).normal(60, 20, (5000, 2)).astype(np.float32)
    values[:, 1] *= 5
    values[0], values[1] = -1000, 3000  # metal and air: outside the percentiles
    plan = make_plan(
        dataset_of(tmp_path, ("MR", name)), found([(1, 1, 1)], None, values), DataConfig()
    )
    mr, ct = plan.normalization
    assert (mr.scheme, ct.scheme) == ("zscore", "window")
    low, high = np.percentile(values[:, 1], (0.5, 99.5))
    clipped = values[:, 1].astype(float).clip(low, high)
    assert (ct.low, ct.high) == pytest.approx((low, high))
    assert (ct.mean, ct.std) == pytest.approx((clipped.mean(), clipped.std()))


def test_modality_and_window_win_over_the_name(tmp_path):
    values = np.random.default_rng(0).normal(60, 20, (5000, 1))
    seen = found([(1, 1, 1)], None, values)
    as_mr = make_plan(dataset_of(tmp_path, ("CT",)), seen, DataConfig(modality="mr"))
    assert as_mr.normalization[0].scheme == "zscore"
    as_ct = make_plan(dataset_of(tmp_path, ("MR",)), seen, DataConfig(modality="ct"))
    assert as_ct.normalization[0].scheme == "window"
    window = make_plan(dataset_of(tmp_path, ("MR",)), seen, DataConfig(window=(40, 80)))
    how = window.normalization[0]
    assert (how.scheme, how.low, how.high) == ("window", 40, 80)
    assert how.mean == pytest.approx(values.astype(np.float32).clip(40, 80).mean(), rel=1e-5)


def test_a_window_is_for_the_channels_of_ct(tmp_path):
    values = np.random.default_rng(0).normal(60, 20, (5000, 2)).astype(np.float32)
    seen, window = found([(1, 1, 1)], None, values), (40.0, 80.0)
    for names, modality, windowed in (
        (("CT", "PET"), None, [True, False]),
        (("MR", "noNorm"), None, [True, False]),
        (("MR", "PET"), None, [True, True]),
        (("CT", "PET"), "ct", [True, True]),
    ):
        data = DataConfig(window=window, modality=modality)
        plan = make_plan(dataset_of(tmp_path, names), seen, data)
        assert [(how.low, how.high) == window for how in plan.normalization] == windowed


def test_ct_without_any_labelled_foreground_is_refused(tmp_path):
    with pytest.raises(InputError, match="foreground"):
        make_plan(dataset_of(tmp_path, ("CT",)), found([(1, 1, 1)]), DataConfig())


def test_whatever_is_set_wins(tmp_path):
    data = DataConfig(orientation="LPS", spacing=(2, 1, 0.5), crop=False, patch=(32, 16, 48))
    plan = make_plan(dataset_of(tmp_path, ignore=2), found([(1, 1, 1)]), data)
    assert (plan.orientation, plan.spacing, plan.crop, plan.patch) == (
        "LPS", (2, 1, 0.5), False, (32, 16, 48),
    )  # fmt: skip
    assert (plan.classes, plan.ignore) == (("background", "organ"), 2)


def test_the_fingerprint_measures_cropped_and_turned_images(tmp_path):
    root = tmp_path / "set"
    array = np.zeros((20, 12, 10), np.float32)
    array[2:18, 3:9, 1:10] = 7
    affine = np.array([[0, 0, 3.0, 0], [-1, 0, 0, 5], [0, 2, 0, 9], [0, 0, 0, 1]])  # P, S, R
    label = np.zeros(array.shape, np.int16)
    label[5:8, 4:6, 3:5] = 1
    array[5:8, 4:6, 3:5] = 9
    write_volume(root / "images" / "a.nii.gz", array, affine)
    write_volume(root / "labels" / "a.nii.gz", label, affine)
    data = read_dataset(root)
    seen = look_at(data, data.cases, DataConfig())
    np.testing.assert_array_equal(seen.shapes, [[9, 16, 6]])  # R, A, S
    np.testing.assert_allclose(seen.spacings, [[3, 1, 2]])
    assert (seen.foreground == 9).all()
    assert len(seen.foreground) == 12
    np.testing.assert_array_equal(seen.whole, [[10, 20, 12]])
    assert seen.inside == pytest.approx([(array != 0).mean()])


def test_ignored_voxels_do_not_enter_the_foreground(tmp_path):
    label = np.zeros((8, 8, 8), np.int16)
    label[:4], label[6:] = 1, 2
    array = np.where(label == 2, 1000, 50).astype(np.float32)
    write_volume(tmp_path / "images" / "a.nii.gz", array, np.eye(4))
    write_volume(tmp_path / "labels" / "a.nii.gz", label, np.eye(4))
    case = read_dataset(tmp_path).cases[0]
    declared = dataset_of(tmp_path, ("image",), ignore=2)
    assert set(look_at(declared, [case], DataConfig()).foreground.ravel()) == {50}


def test_hidden_labels_are_not_opened(tmp_path, phantoms):
    """Garbage in the labels of unlabelled cases changes neither fingerprint nor plan."""
    poisoned = tmp_path / "poisoned"
    shutil.copytree(phantoms, poisoned)
    split = choose_split(read_dataset(poisoned), poisoned / "splits.json", None, 0, 0.2)
    assert split.unlabeled
    for name in split.unlabeled:
        (poisoned / "labelsTr" / f"{name}.nii.gz").write_bytes(b"not a volume")
    data = DataConfig(modality="ct")  # the plan that looks at labelled intensities most
    plans, prints = [], []
    for root in (phantoms, poisoned):
        visible, cases, _ = labelled(root)
        prints.append(look_at(visible, cases, data))
        plans.append(make_plan(visible, prints[-1], data))
    assert plans[0] == plans[1]
    for field in ("shapes", "spacings", "foreground"):
        np.testing.assert_array_equal(getattr(prints[0], field), getattr(prints[1], field))


def test_every_labelled_case_has_its_share_of_the_foreground(phantoms):
    visible, cases, split = labelled(phantoms)
    seen = look_at(visible, cases, DataConfig(modality="ct"))
    for name in split.labeled:
        case = visible.case(name)
        values = read_image(case.images).array[0][read_label(case.label).array > 0]
        assert np.isin(values, seen.foreground).mean() > 0.9


def test_a_label_on_another_grid_is_refused_before_planning(tmp_path):
    write_volume(tmp_path / "images" / "a.nii.gz", np.ones((8, 8, 8), np.float32), np.eye(4))
    write_volume(tmp_path / "labels" / "a.nii.gz", np.ones((8, 8, 7), np.int16), np.eye(4))
    case = read_dataset(tmp_path).cases[0]
    with pytest.raises(InputError, match=r"a\.nii\.gz"):
        look_at(dataset_of(tmp_path, ("image",)), [case], DataConfig())


def test_an_image_with_other_channels_is_refused(tmp_path):
    write_volume(tmp_path / "images" / "a.nii.gz", np.ones((8, 8, 8), np.float32), np.eye(4))
    case = read_dataset(tmp_path).cases[0]
    with pytest.raises(InputError, match="channel"):
        look_at(dataset_of(tmp_path, ("T1", "T2")), [case], DataConfig())


def test_a_plan_that_numbers_the_classes_otherwise_is_refused(tmp_path):
    dataset = Dataset(tmp_path, "set", ("MRI",), ("background", "liver", "spleen"), None, ())
    plan = make_plan(dataset, found([(1, 1, 1)]), DataConfig())
    check_plan(plan, dataset)
    check_plan(plan, replace(dataset, classes=("background", "the liver", "spleen")))
    with pytest.raises(InputError, match="numbers its classes in another way"):
        check_plan(plan, replace(dataset, classes=("background", "spleen", "liver")))
