import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcamt.augmentation import AugmentConfig, StrongConfig
from dcamt.config import TrainConfig
from dcamt.data.patches import (
    Batches,
    Location,
    change_intensity,
    cut,
    draw_intensity,
    draw_location,
    draw_matrix,
)
from dcamt.data.prepare import Prepared
from dcamt.types import IGNORE

FLIPS = [f for n in range(4) for f in itertools.combinations(range(3), n)]
PLAIN = AugmentConfig(flip=(), rotate=False, intensity=0)
USUAL = AugmentConfig()
RICH = AugmentConfig(kind="nnunet", flip=(0, 1, 2), rotate=False)
PATCH = (16, 16, 16)

sizes = st.tuples(*[st.integers(1, 9)] * 3)
offsets = st.tuples(*[st.integers(-4, 4)] * 3)


def slow_cut(array, at, fill):
    """One voxel at a time: turn by turn, flip by flip, then look into the volume."""
    sizes = list(at.size)
    if at.turns % 2:
        sizes[0], sizes[1] = sizes[1], sizes[0]
    result = np.empty((*array.shape[:-3], *sizes), array.dtype)
    for voxel in np.ndindex(*sizes):
        x, y, z = (
            sizes[a] - 1 - v if a in at.flips else v for a, v in zip(range(3), voxel, strict=True)
        )
        # A quarter turn takes axis 0 to axis 1, against the clock: undo them one by one.
        nx, ny = sizes[0], sizes[1]
        for _ in range(at.turns):
            x, y, nx, ny = y, nx - 1 - x, ny, nx
        source = [i + s for i, s in zip((x, y, z), at.start, strict=True)]
        known = all(0 <= i < n for i, n in zip(source, array.shape[-3:], strict=True))
        result[(..., *voxel)] = array[(..., *source)] if known else fill
    return result


@given(sizes, sizes, offsets, st.integers(0, 3), st.sampled_from(FLIPS))
@settings(max_examples=150, deadline=None)
def test_cut_against_a_slow_reference(shape, size, start, turns, flips):
    # Part of the patch must lie in the volume, as draw_location sees to.
    start = tuple(min(max(s, 1 - p), n - 1) for s, p, n in zip(start, size, shape, strict=True))
    array = np.arange(2 * np.prod(shape), dtype=np.float32).reshape(2, *shape)
    at = Location(start, size, turns, flips)
    np.testing.assert_array_equal(cut(array, at, -5), slow_cut(array, at, -5))
    label = array[0].astype(np.int8)
    np.testing.assert_array_equal(cut(label, at, IGNORE), slow_cut(label, at, IGNORE))


def test_cut_leaves_the_volume_alone():
    array = np.zeros((1, 5, 5, 5), np.float32)
    patch = cut(array, Location((0, 0, 0), (5, 5, 5), 0, ()), 0)
    patch[:] = 1
    assert not array.any()


@given(
    st.integers(0, 10_000),
    st.tuples(*[st.integers(3, 40)] * 3),
    st.tuples(*[st.sampled_from((4, 8, 16, 24))] * 3),
    st.booleans(),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_a_location_holds_its_centre_and_stays_inside(seed, shape, patch, rotate, data):
    augment = AugmentConfig(flip=(0, 2), rotate=rotate)
    centre = np.array([data.draw(st.integers(0, n - 1)) for n in shape])
    at = draw_location(np.random.default_rng(seed), shape, patch, augment, centre)
    for c, start, size, n in zip(centre, at.start, at.size, shape, strict=True):
        assert start <= c < start + size
        if n >= size:
            assert 0 <= start <= n - size
        else:
            before, after = -start, start + size - n
            assert before >= 0
            assert 0 <= after - before <= 1  # centred
    turned = at.size if at.turns % 2 == 0 else (at.size[1], at.size[0], at.size[2])
    assert turned == patch
    assert set(at.flips) <= {0, 2}
    assert rotate or at.turns == 0
    assert cut(np.zeros(shape), at, 0).shape == patch


def test_every_position_turn_and_flip_is_drawn():
    rng = np.random.default_rng(0)
    drawn = [draw_location(rng, (10, 8, 9), (8, 8, 8), USUAL) for _ in range(500)]
    assert {at.start for at in drawn} == set(itertools.product(range(3), range(1), range(2)))
    assert {at.turns for at in drawn} == {0, 1, 2, 3}
    assert {at.flips for at in drawn} == {(), (0,), (1,), (0, 1)}


def test_every_position_around_a_centre_is_drawn():
    rng = np.random.default_rng(0)
    centre = np.array([9, 4, 0])
    drawn = [draw_location(rng, (10, 10, 10), (4, 4, 4), PLAIN, centre) for _ in range(500)]
    assert {at.start[0] for at in drawn} == {6}
    assert {at.start[1] for at in drawn} == {1, 2, 3, 4}
    assert {at.start[2] for at in drawn} == {0}


def test_intensity_changes_are_mild_and_off_at_zero():
    image = np.random.default_rng(1).normal(0, 1, (2, 12, 12, 12)).astype(np.float32)
    nothing = draw_intensity(np.random.default_rng(0), image.shape, 0)
    assert change_intensity(image, nothing) is image
    for seed in range(20):
        change = draw_intensity(np.random.default_rng(seed), image.shape, 0.1)
        changed = change_intensity(image, change)
        assert np.array_equal(changed, change_intensity(image, change))  # it can be replayed
        assert changed.dtype == np.float32
        for a, b in zip(image, changed, strict=True):
            slope, shift = np.polyfit(a.ravel(), b.ravel(), 1)
            assert 0.88 < slope < 1.12
            assert abs(shift) < 0.12
            assert (b - slope * a - shift).std() < 0.11


@pytest.fixture
def cases(tmp_path):
    """``cases(shapes, labelled)`` prepares volumes whose voxels hold their own position."""

    def make(shapes, labelled, prefix="c"):
        made = []
        for i, shape in enumerate(shapes):
            image = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(1, *shape)
            np.save(tmp_path / f"{prefix}{i}.image.npy", image)
            label_path = None
            if labelled:
                label_path = tmp_path / f"{prefix}{i}.label.npy"
                np.save(label_path, (image[0] % 3).astype(np.int8))
            made.append(Prepared(f"{prefix}{i}", tmp_path / f"{prefix}{i}.image.npy", label_path))
        return made

    return make


def settings_of(**changes):
    base = {"labeled_batch": 2, "unlabeled_batch": 3, "iterations": 50, "augment": PLAIN}
    return TrainConfig(**(base | changes))


def equal(a, b):
    return (
        a.cases == b.cases
        and all(
            torch.equal(getattr(a, name), getattr(b, name))
            for name in ("image_l", "label_l", "image_u", "inside_u")
        )
        and all(torch.equal(x, y) for x, y in zip(a.strong_u, b.strong_u, strict=True))
    )


def test_shapes_and_types_of_a_batch(cases):
    batch = Batches(
        cases([(20, 17, 16)] * 3, True), cases([(9, 30, 16)] * 4, False, "u"),
        (32, 16, 16), settings_of(augment=USUAL), 0,
    )[0]  # fmt: skip
    assert batch.image_l.shape == (2, 1, 32, 16, 16)
    assert batch.label_l.shape == (2, 32, 16, 16)
    assert batch.image_u.shape == (3, 1, 32, 16, 16)
    assert batch.inside_u.shape == (3, 32, 16, 16)
    assert batch.image_l.dtype == batch.image_u.dtype == torch.float32
    assert batch.label_l.dtype == torch.int64
    assert batch.inside_u.dtype == torch.bool
    assert len(batch.cases) == 5


@pytest.mark.parametrize("shape", [(20, 20, 20), (9, 18, 7), (5, 5, 5), (16, 16, 1)])
def test_image_label_and_inside_belong_together(cases, shape):
    """Voxels hold their position, so any slip of one against the other shows."""
    augment = AugmentConfig(flip=(0, 1, 2), rotate=True, intensity=0)
    batches = Batches(
        cases([shape] * 2, True), cases([shape] * 3, False, "u"),
        PATCH, settings_of(augment=augment), 1,
    )  # fmt: skip
    padded = any(n < p for n, p in zip(shape, PATCH, strict=True))
    for iteration in range(12):
        batch = batches[iteration]
        image, label = batch.image_l[:, 0], batch.label_l
        real = image > 0
        assert torch.equal(label[real], image[real].long() % 3)
        assert (label[~real] == IGNORE).all()
        assert torch.equal(batch.inside_u, batch.image_u[:, 0] > 0)
        assert bool((~real).any()) == padded
        if padded:
            inner = [min(n, p) for n, p in zip(shape, PATCH, strict=True)]
            assert (real.sum((1, 2, 3)) == np.prod(inner)).all()


@pytest.mark.parametrize("augment", [USUAL, RICH], ids=["usual", "rich"])
def test_a_batch_depends_on_seed_and_iteration_alone(cases, augment):
    labelled, unlabelled = cases([(20, 20, 20)] * 3, True), cases([(20, 20, 20)] * 5, False, "u")
    config = settings_of(augment=augment)
    one, two = (Batches(labelled, unlabelled, PATCH, config, 7, views=2) for _ in range(2))
    for i in (0, 1, 9):
        one[i]
    assert equal(one[4], two[4])
    assert not equal(one[4], one[5])
    assert not equal(one[4], Batches(labelled, unlabelled, PATCH, config, 8)[4])
    before = two[4]
    np.random.seed(99)  # noqa: NPY002 - foreign random states play no part
    torch.manual_seed(99)
    assert equal(before, two[4])


def test_strong_views_change_intensities_and_nothing_else(cases):
    labelled, unlabelled = cases([(20, 20, 20)] * 3, True), cases([(20, 20, 20)] * 5, False, "u")
    blurless = StrongConfig(blur=(0, 1, 1), noise=(0, 0, 0))
    config = settings_of(augment=USUAL, strong=blurless, unlabeled_batch=4)
    none, two = (Batches(labelled, unlabelled, PATCH, config, 7, views=n) for n in (0, 2))
    changed = 0
    for iteration in range(6):
        plain, batch = none[iteration], two[iteration]
        assert equal(plain, replace(batch, strong_u=())), "a view moved the other draws"
        assert len(batch.strong_u) == 2 and not torch.equal(*batch.strong_u)
        for view in batch.strong_u:
            assert view.shape == batch.image_u.shape and view.dtype == torch.float32
            for strong, weak in zip(view.flatten(1), batch.image_u.flatten(1), strict=True):
                # Brightness, contrast and gamma keep the order of the values, or nearly.
                assert torch.corrcoef(torch.stack([strong, weak]))[0, 1] > 0.9
                changed += not torch.equal(strong, weak)
    assert changed > 40


def test_worker_processes_draw_the_same_batches(cases):
    batches = Batches(
        cases([(20, 20, 20)] * 3, True), cases([(20, 20, 20)] * 5, False, "u"),
        PATCH, settings_of(augment=RICH), 7, views=1,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(
        batches, batch_size=None, sampler=range(3, 7), num_workers=2
    )
    for iteration, batch in zip(range(3, 7), loader, strict=True):
        assert equal(batch, batches[iteration])


def test_each_stream_sees_every_case_once_before_any_twice(cases):
    labelled, unlabelled = cases([(16, 16, 16)] * 5, True), cases([(16, 16, 16)] * 7, False, "u")
    batches = Batches(labelled, unlabelled, PATCH, settings_of(iterations=35), 0)
    names = [batches[i].cases for i in range(35)]
    for stream, everyone in (
        ([n for batch in names for n in batch[:2]], {c.name for c in labelled}),
        ([n for batch in names for n in batch[2:]], {c.name for c in unlabelled}),
    ):
        epochs = [stream[i : i + len(everyone)] for i in range(0, len(stream), len(everyone))]
        assert all(set(epoch) == everyone for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1  # and in a fresh order


def test_labels_of_unlabelled_cases_play_no_part(cases):
    """The same batches come out whether unlabelled cases have a label somewhere or not."""
    labelled, bare = cases([(20, 20, 20)] * 2, True), cases([(20, 20, 20)] * 4, False, "u")
    poisoned = [
        Prepared(c.name, c.image_path, c.image_path.with_name("no-such-label.npy")) for c in bare
    ]
    one, two = (Batches(labelled, u, PATCH, settings_of(), 0) for u in (bare, poisoned))
    assert all(equal(one[i], two[i]) for i in range(6))


def test_without_unlabelled_cases_the_labelled_ones_serve_both_streams(cases):
    labelled = cases([(20, 20, 20)] * 3, True)
    batch = Batches(labelled, [], PATCH, settings_of(), 0)[0]
    assert set(batch.cases[2:]) == {c.name for c in labelled}
    assert batch.inside_u.all()


def test_the_wanted_share_of_patches_shows_foreground(tmp_path):
    """One bright voxel in a corner of a large volume: a random patch rarely holds it."""
    image = np.zeros((1, 64, 64, 64), np.float32)
    label = np.zeros((64, 64, 64), np.int8)
    label[2, 61, 30] = 1
    np.save(tmp_path / "i.npy", image)
    np.save(tmp_path / "l.npy", label)
    case = Prepared("a", tmp_path / "i.npy", tmp_path / "l.npy")

    def share(wanted):
        config = settings_of(labeled_batch=1, unlabeled_batch=1, foreground=wanted, augment=USUAL)
        batches = Batches([case], [case], PATCH, config, 0)
        return np.mean([bool((batches[i].label_l == 1).any()) for i in range(120)])

    assert share(1.0) == 1
    assert share(0.0) < 0.1
    assert share(0.5) == pytest.approx(0.5, abs=0.15)


def test_a_labelled_case_without_foreground_is_no_obstacle(tmp_path):
    np.save(tmp_path / "i.npy", np.ones((1, 16, 16, 16), np.float32))
    np.save(tmp_path / "l.npy", np.zeros((16, 16, 16), np.int8))
    case = Prepared("a", tmp_path / "i.npy", tmp_path / "l.npy")
    config = settings_of(labeled_batch=1, unlabeled_batch=1, foreground=1.0)
    assert (Batches([case], [case], PATCH, config, 0)[0].label_l == 0).all()


def test_a_turn_and_zoom_of_nothing_is_a_straight_cut() -> None:
    volume = np.random.default_rng(0).random((2, 20, 24, 18), np.float32)
    straight = Location((2, -3, 4), (16, 32, 16), 1, (0,))
    same = replace(straight, matrix=np.eye(3))
    np.testing.assert_array_equal(cut(volume, same, 7.0), cut(volume, straight, 7.0))


def test_a_rotation_by_a_right_angle_is_a_quarter_turn() -> None:
    volume = np.random.default_rng(0).random((16, 16, 16), np.float32)
    matrix = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    turned = cut(volume, Location((0, 0, 0), (16, 16, 16), 0, (), matrix), 0.0)
    # Patch voxel (x, y) shows volume voxel (-y, x) about the middle.
    np.testing.assert_allclose(turned, np.rot90(volume, -1, axes=(0, 1)), atol=1e-5)


def test_rotation_and_zoom_are_rigid_in_mm_and_within_their_limits() -> None:
    augment, spacing = AugmentConfig(angle=20, zoom=0.25), (0.5, 0.5, 2.0)
    factors = []
    for seed in range(50):
        matrix = draw_matrix(np.random.default_rng(seed), augment, spacing)
        assert matrix is not None
        in_mm = np.diag(spacing) @ matrix @ np.linalg.inv(np.diag(spacing))
        factor = np.cbrt(np.linalg.det(in_mm))
        np.testing.assert_allclose(in_mm @ in_mm.T, factor**2 * np.eye(3), atol=1e-9)
        factors.append(factor)
    assert 0.8 <= min(factors) < 0.9
    assert 1.1 < max(factors) <= 1.25
    assert draw_matrix(np.random.default_rng(0), AugmentConfig(), spacing) is None


def test_a_turned_label_keeps_whole_classes_and_marks_what_lies_outside() -> None:
    label = np.random.default_rng(0).integers(0, 3, (12, 12, 12)).astype(np.int8)
    matrix = draw_matrix(np.random.default_rng(1), AugmentConfig(angle=15, zoom=0.2), (1, 1, 1))
    at = Location((-2, -2, -2), (16, 16, 16), 0, (), matrix)
    turned = cut(label, at, IGNORE)
    assert set(np.unique(turned)) == {IGNORE, 0, 1, 2}
    inside = cut(np.ones(label.shape, np.uint8), at, 0).astype(bool)
    np.testing.assert_array_equal(turned != IGNORE, inside)
