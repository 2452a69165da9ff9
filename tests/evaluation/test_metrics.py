"""Metrics against MedPy, against distances known by construction, and in the empty cases."""

from math import sqrt
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.testing import assert_allclose
from scipy.ndimage import gaussian_filter

from dcamt.evaluation.metrics import (
    METRICS,
    OVERLAPS,
    TITLES,
    metrics_per_class,
    segmentation_metrics,
)

VOXELS = (1.0, 1.0, 1.0)

quick = settings(deadline=None, max_examples=60)
spacings = st.tuples(*3 * [st.floats(0.2, 6)])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two masks of one shape, each with foreground: ragged, in pieces, touching the edges."""
    shape = draw(array_shapes(min_dims=3, max_dims=3, max_side=6))
    masks = arrays(bool, shape).filter(np.any)
    return draw(masks), draw(masks)


@pytest.fixture(scope="session")
def medpy() -> ModuleType:
    return pytest.importorskip("medpy.metric.binary", reason="needs medpy (extra 'dev')")


def by_medpy(medpy: ModuleType, prediction, reference, spacing) -> dict[str, float]:
    return {
        "dice": medpy.dc(prediction, reference),
        "jaccard": medpy.jc(prediction, reference),
        "hd95": medpy.hd95(prediction, reference, voxelspacing=spacing),
        "asd": medpy.asd(prediction, reference, voxelspacing=spacing),
    }


def assert_same(ours: dict, theirs: dict) -> None:
    assert tuple(ours) == METRICS
    for metric in METRICS:
        assert_allclose(ours[metric], theirs[metric], rtol=0, atol=1e-6, err_msg=metric)


def mask(shape: tuple[int, int, int], *boxes: tuple[slice, slice, slice]) -> np.ndarray:
    out = np.zeros(shape, dtype=bool)
    for box in boxes:
        out[box] = True
    return out


def blobs(rng: np.random.Generator, shape: tuple[int, int, int], smooth: float) -> np.ndarray:
    noise = gaussian_filter(rng.standard_normal(shape), smooth)
    return noise > np.quantile(noise, rng.uniform(0.5, 0.95))


# ------------------------------------------------------------------------------- equal to MedPy


@pytest.mark.parametrize("seed", range(20))
def test_equals_medpy_on_blobs(medpy: ModuleType, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(8, 40, size=3))
    spacing = tuple(rng.uniform(0.4, 5, size=3))
    prediction, reference = (blobs(rng, shape, rng.uniform(0, 3)) for _ in range(2))
    ours = segmentation_metrics(prediction, reference, spacing)
    assert_same(ours, by_medpy(medpy, prediction, reference, spacing))


@quick
@given(pair=pairs(), spacing=spacings)
def test_equals_medpy_on_any_mask(medpy: ModuleType, pair, spacing) -> None:
    assert_same(segmentation_metrics(*pair, spacing), by_medpy(medpy, *pair, spacing))


@pytest.mark.parametrize("axis", range(3))
def test_equals_medpy_on_real_labels(medpy: ModuleType, real_data: Path, axis: int) -> None:
    files = sorted((real_data / "hippocampus" / "labelsTr").glob("hippocampus_*.nii.gz"))[:4]
    assert files
    for file in files:
        image = nib.load(file)
        label = np.asarray(image.dataobj).astype(np.int16)
        prediction = np.roll(label, 1, axis=axis)
        spacing = tuple(float(size) for size in image.header.get_zooms())
        rows = metrics_per_class(prediction, label, (1, 2), spacing)
        for row in rows:
            value = row["class"]
            ours = {metric: row[metric] for metric in METRICS}
            assert_same(ours, by_medpy(medpy, prediction == value, label == value, spacing))


# ----------------------------------------------------------------- the others, by their authors


def by_others(medpy: ModuleType, prediction, reference, spacing, tolerance) -> dict[str, float]:
    """MedPy's ASSD and HD; MONAI's 95HD (the larger of two percentiles) and surface Dice."""
    monai = pytest.importorskip("monai.metrics")
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
    options = {"include_background": True, "spacing": spacing}
    return {
        "assd": medpy.assd(prediction, reference, voxelspacing=spacing),
        "hd": medpy.hd(prediction, reference, voxelspacing=spacing),
        "hd95_max": monai.compute_hausdorff_distance(*pair, percentile=95, **options).item(),
        "nsd": monai.compute_surface_dice(*pair, [tolerance], **options).item(),
    }


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("seed", range(20))
def test_equals_medpy_and_monai_in_the_other_metrics(medpy: ModuleType, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(8, 40, size=3))
    spacing = tuple(float(size) for size in rng.uniform(0.4, 5, size=3))
    prediction, reference = (blobs(rng, shape, rng.uniform(0, 3)) for _ in range(2))
    expected = by_others(medpy, prediction, reference, spacing, 2.0)
    ours = segmentation_metrics(prediction, reference, spacing, tuple(expected), 2.0)
    assert ours == pytest.approx(expected, abs=1e-4)  # MONAI computes in 32 bits


def test_two_parts_far_apart_tell_the_metrics_of_distance_from_each_other() -> None:
    """20 voxels that agree and one, 30 mm off, that only the reference has."""
    prediction = mask((30, 3, 12), np.s_[0:20, 1:2, 1:2])
    reference = prediction | mask((30, 3, 12), np.s_[0:1, 1:2, 11:12])
    names = ("hd95", "hd95_max", "hd", "assd", "asd")
    found = segmentation_metrics(prediction, reference, (1.0, 1.0, 3.0), names)
    assert found == pytest.approx(
        {
            "hd95": 0,  # the 95th of 41 distances, of which one is not 0
            "hd95_max": np.percentile([0] * 20 + [30], 95),  # that of reference to prediction
            "hd": 30,
            "assd": 30 / 41,
            "asd": 0,
        }
    )


@pytest.mark.parametrize(("tolerance", "expected"), [(0, 0.5), (1.9, 0.5), (2, 0.75), (6, 1)])
def test_surface_dice_counts_voxels_within_the_tolerance(tolerance, expected) -> None:
    """Of four voxels each, two agree, one is 2 mm and one 6 mm from the other surface."""
    prediction = mask((20, 5, 9), *(np.s_[x : x + 1, 2:3, 0:1] for x in (0, 5, 10, 15)))
    reference = mask((20, 5, 9), *(np.s_[x : x + 1, 2:3, 0:1] for x in (0, 5)),
                     np.s_[10:11, 3:4, 0:1], np.s_[15:16, 2:3, 4:5])  # fmt: skip
    found = segmentation_metrics(prediction, reference, (3.0, 2.0, 1.5), ("nsd",), tolerance)
    assert found == {"nsd": expected}


@pytest.mark.parametrize("axis", range(3))
def test_a_tolerance_of_one_voxel_is_met_by_a_shift_of_one_voxel(axis: int) -> None:
    """Headers hold sizes in 32 bits: 0.3 mm is 0.30000001 there."""
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = float(np.float32(0.3))
    one = mask((9, 9, 9), np.s_[2:6, 2:6, 2:6])
    moved = np.roll(one, 1, axis)
    assert segmentation_metrics(one, moved, spacing, ("nsd",), 0.3) == {"nsd": 1}
    assert segmentation_metrics(one, moved, spacing, ("nsd",), 0.29)["nsd"] < 1


def test_metrics_come_in_the_order_asked_for() -> None:
    pair = mask((5, 5, 5), np.s_[0:2]), mask((5, 5, 5), np.s_[0:3])
    names = tuple(reversed(TITLES))
    found = segmentation_metrics(*pair, VOXELS, names)
    assert tuple(found) == names
    assert found["hd"] == found["hd95_max"] == 1
    assert segmentation_metrics(*pair, VOXELS, ("jaccard",)) == {"jaccard": pytest.approx(2 / 3)}


# ------------------------------------------------------------------------ known by construction


def test_overlap_counts_voxels() -> None:
    prediction = mask((6, 6, 6), np.s_[0:4, 0:2, 0:1])  # 8 voxels
    reference = mask((6, 6, 6), np.s_[2:6, 0:2, 0:2])  # 16 voxels, 4 of them shared
    result = segmentation_metrics(prediction, reference, VOXELS)
    assert result["dice"] == pytest.approx(2 * 4 / 24)
    assert result["jaccard"] == pytest.approx(4 / 20)


def test_two_voxels_are_apart_by_their_distance_in_mm() -> None:
    prediction = mask((5, 5, 5), np.s_[0:1, 0:1, 0:1])
    reference = mask((5, 5, 5), np.s_[2:3, 3:4, 4:5])
    result = segmentation_metrics(prediction, reference, (1.0, 2.0, 0.5))
    expected = sqrt(2**2 + 6**2 + 2**2)
    assert result == pytest.approx({"dice": 0, "jaccard": 0, "hd95": expected, "asd": expected})


@pytest.mark.parametrize("axis", range(3))
def test_a_shifted_plate_is_apart_by_the_shift(axis: int) -> None:
    spacing = (0.5, 1.25, 3.0)
    planes = np.zeros((12, 12, 12), dtype=bool), np.zeros((12, 12, 12), dtype=bool)
    for plane, position in zip(planes, (2, 9), strict=True):
        np.moveaxis(plane, axis, 0)[position] = True
    result = segmentation_metrics(*planes, spacing)
    assert result["hd95"] == result["asd"] == pytest.approx(7 * spacing[axis])


def test_concentric_spheres_are_apart_by_the_difference_of_radii() -> None:
    spacing = np.array((1.0, 0.8, 1.5))
    grid = np.moveaxis(np.indices((48, 60, 32)), 0, -1) - np.array((24, 30, 16))
    radius = np.linalg.norm(grid * spacing, axis=-1)
    result = segmentation_metrics(radius < 12, radius < 18, tuple(spacing))
    assert result["dice"] == pytest.approx(2 * 12**3 / (12**3 + 18**3), abs=0.01)
    assert result["asd"] == pytest.approx(6, abs=0.5)
    assert result["hd95"] == pytest.approx(6, abs=1.5)  # within a voxel


def test_asd_goes_from_prediction_to_reference_only() -> None:
    """A prediction that lacks one of two parts has ASD 0; 95HD looks both ways."""
    one = mask((20, 3, 3), np.s_[0:1, 1:2, 1:2])
    two = mask((20, 3, 3), np.s_[0:1, 1:2, 1:2], np.s_[10:11, 1:2, 1:2])
    assert segmentation_metrics(one, two, VOXELS)["asd"] == 0
    assert segmentation_metrics(two, one, VOXELS)["asd"] == 5
    assert segmentation_metrics(one, two, VOXELS)["hd95"] == np.percentile((0, 0, 10), 95)


def test_voxels_at_the_edge_of_the_array_are_surface() -> None:
    """Of a filled array only the core is inside: the distance to it is that of the shell."""
    filled = np.ones((5, 5, 5), dtype=bool)
    core = mask((5, 5, 5), np.s_[2:3, 2:3, 2:3])
    assert segmentation_metrics(core, filled, VOXELS)["asd"] == 2


# ------------------------------------------------------------------------------------ properties


@quick
@given(pair=pairs(), spacing=spacings)
def test_bounds_and_symmetry(pair, spacing) -> None:
    prediction, reference = pair
    there = segmentation_metrics(prediction, reference, spacing)
    back = segmentation_metrics(reference, prediction, spacing)
    diagonal = float(np.linalg.norm(np.multiply(prediction.shape, spacing)))
    assert 0 <= there["jaccard"] <= there["dice"] <= 1
    assert there["jaccard"] == pytest.approx(there["dice"] / (2 - there["dice"]))
    assert 0 <= there["asd"] <= diagonal
    assert 0 <= there["hd95"] <= diagonal
    for metric in ("dice", "jaccard", "hd95"):
        assert there[metric] == pytest.approx(back[metric])


@quick
@given(pair=pairs(), spacing=spacings)
def test_a_perfect_prediction(pair, spacing) -> None:
    result = segmentation_metrics(pair[0], pair[0].copy(), spacing)
    assert result == {"dice": 1, "jaccard": 1, "hd95": 0, "asd": 0}


@quick
@given(pair=pairs(), spacing=spacings, pad=st.integers(1, 3), factor=st.floats(0.1, 10))
def test_background_around_and_unit_do_not_matter(pair, spacing, pad, factor) -> None:
    plain = segmentation_metrics(*pair, spacing)
    padded = segmentation_metrics(*(np.pad(each, pad) for each in pair), spacing)
    assert padded == pytest.approx(plain)
    scaled = segmentation_metrics(*pair, tuple(factor * size for size in spacing))
    assert scaled["dice"] == plain["dice"]
    for metric in ("hd95", "asd"):
        assert scaled[metric] == pytest.approx(factor * plain[metric])


@quick
@given(pair=pairs(), spacing=spacings, order=st.permutations(range(3)))
def test_order_of_axes_does_not_matter(pair, spacing, order) -> None:
    turned = segmentation_metrics(
        *(each.transpose(order) for each in pair), tuple(spacing[axis] for axis in order)
    )
    assert turned == pytest.approx(segmentation_metrics(*pair, spacing))


def test_masks_are_left_as_they_were() -> None:
    prediction, reference = mask((6, 6, 6), np.s_[0:4]), mask((6, 6, 6), np.s_[2:6])
    before = prediction.copy(), reference.copy()
    segmentation_metrics(prediction, reference, VOXELS)
    assert (prediction == before[0]).all()
    assert (reference == before[1]).all()


# ----------------------------------------------------------------------------------- empty masks

NOTHING = {"hd95": None, "asd": None}


@pytest.mark.parametrize(
    ("prediction", "reference", "metrics", "outcome"),
    [
        ((), (), {"dice": None, "jaccard": None, **NOTHING}, "both empty"),
        ((), (2,), {"dice": 0, "jaccard": 0, **NOTHING}, "missed"),
        ((2,), (), {"dice": 0, "jaccard": 0, **NOTHING}, "invented"),
        ((2,), (2,), {"dice": 1, "jaccard": 1, "hd95": 0, "asd": 0}, "ok"),
        ((2,), (3,), {"dice": 0, "jaccard": 0, "hd95": 1, "asd": 1}, "ok"),
    ],
)
def test_rule_for_empty_masks(prediction, reference, metrics, outcome) -> None:
    maps = []
    for positions in (prediction, reference):
        label = np.zeros((5, 5, 5), dtype=np.int16)
        label[0] = 1  # another class is there in both
        for position in positions:
            label[position] = 2
        maps.append(label)
    rows = metrics_per_class(*maps, classes=(2,), spacing=VOXELS)
    assert rows == [{"class": 2, **metrics, "outcome": outcome}]


def test_every_metric_follows_the_rule_for_empty_masks() -> None:
    """An overlap of what is missed is 0, which is the worst; a distance of 0 would be the best."""
    empty, full = np.zeros((5, 5, 5), bool), mask((5, 5, 5), np.s_[1:3])
    assert segmentation_metrics(empty, empty, VOXELS, tuple(TITLES)) == dict.fromkeys(TITLES)
    for pair in ((empty, full), (full, empty)):
        found = segmentation_metrics(*pair, VOXELS, tuple(TITLES))
        assert found == {metric: 0 if metric in OVERLAPS else None for metric in TITLES}


def test_classes_are_measured_one_by_one_in_the_given_order() -> None:
    reference = np.zeros((8, 8, 8), dtype=np.int16)
    reference[:2], reference[6:] = 1, 7
    prediction = reference.copy()
    prediction[prediction == 7] = 0
    rows = metrics_per_class(prediction, reference, (7, 1, 3), VOXELS)
    assert [(row["class"], row["outcome"]) for row in rows] == [
        (7, "missed"),
        (1, "ok"),
        (3, "both empty"),
    ]


def test_ignored_voxels_belong_to_no_class() -> None:
    reference = np.zeros((8, 8, 8), dtype=np.int16)
    reference[:4, :4, :4], reference[4:] = 1, 9
    prediction = np.zeros_like(reference)
    prediction[:6, :4, :4] = 1  # wrong only where the reference does not say
    prediction[4:, 6:] = 2
    strict = metrics_per_class(prediction, reference, (1, 2), VOXELS)
    assert [row["outcome"] for row in strict] == ["ok", "invented"]
    assert strict[0]["dice"] < 1
    lenient = metrics_per_class(prediction, reference, (1, 2), VOXELS, ignore=9)
    assert [row["outcome"] for row in lenient] == ["ok", "both empty"]
    assert lenient[0]["dice"] == 1
    assert lenient[0]["hd95"] == 0


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("prediction", "reference", "spacing", "message"),
    [
        (np.ones((3, 3, 3), np.uint8), np.ones((3, 3, 3), bool), VOXELS, "prediction must be"),
        (np.ones((3, 3, 3), bool), np.ones((1, 3, 3, 3), bool), VOXELS, "reference must be"),
        (np.ones((3, 3, 3), bool), np.ones((3, 3, 1), bool), VOXELS, "differ"),
        (np.ones((3, 3, 3), bool), np.ones((3, 3, 3), bool), (1.0, 0.0, 1.0), "above 0"),
        (np.ones((3, 3, 3), bool), np.ones((3, 3, 3), bool), (1.0, 1.0), "three numbers"),
    ],
)
def test_unusable_masks_are_refused(prediction, reference, spacing, message) -> None:
    with pytest.raises(ValueError, match=message):
        segmentation_metrics(prediction, reference, spacing)
