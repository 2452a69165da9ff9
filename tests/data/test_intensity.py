"""Each change of intensity against what it is by definition."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from dcamt.augmentation import AugmentConfig, IntensityConfig, StrongConfig
from dcamt.data.intensity import apply_changes, draw_changes

NAMES = list(IntensityConfig.model_fields)


@pytest.fixture
def image():
    random = np.random.default_rng(0)
    smooth = gaussian_filter(random.standard_normal((2, 24, 20, 16)), (0, 2, 2, 2))
    return (smooth / smooth.std()).astype(np.float32)


def only(name, low, high=None):
    return IntensityConfig(**{name: (1, low, low if high is None else high)})


def changed(image, name, low, high=None, seed=0):
    drawn = draw_changes(np.random.default_rng(seed), len(image), only(name, low, high))
    return apply_changes(image, drawn)


def test_nothing_is_drawn_where_nothing_happens(image):
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    drawn = draw_changes(rng, 2, IntensityConfig())
    assert drawn == [[], []] and rng.bit_generator.state == before
    assert apply_changes(image, drawn) is image


def test_noise_has_the_deviation_that_was_drawn(image):
    difference = changed(image, "noise", 0.1) - image
    assert difference.std() == pytest.approx(0.1, rel=0.03)
    assert abs(np.corrcoef(difference[0].ravel(), difference[1].ravel())[0, 1]) < 0.05


def test_brightness_multiplies(image):
    np.testing.assert_allclose(changed(image, "brightness", 1.25), 1.25 * image, rtol=1e-6)


def test_contrast_keeps_mean_and_range(image):
    found = changed(image, "contrast", 1.5)
    for channel, before in zip(found, image, strict=True):
        expected = (before - before.mean()) * 1.5 + before.mean()
        expected = expected.clip(before.min(), before.max())
        np.testing.assert_allclose(channel, expected, atol=1e-5)


def test_blur_is_gaussian(image):
    found = changed(image, "blur", 1.0)
    expected = np.stack([gaussian_filter(channel, 1.0) for channel in image])
    inner = (slice(None), *[slice(4, -4)] * 3)
    np.testing.assert_allclose(
        found[inner], expected[inner], atol=0.06
    )  # MONAI integrates over voxels


def test_low_resolution_takes_fine_detail_away_and_keeps_the_rest(image):
    fine = image + 0.5 * np.indices(image.shape).sum(0) % 2 - 0.25
    found = changed(fine.astype(np.float32), "low_resolution", 0.5)
    roughness = [np.abs(np.diff(x, axis=1)).mean() for x in (fine, found)]
    assert roughness[1] < 0.6 * roughness[0]
    assert changed(image, "low_resolution", 1.0) == pytest.approx(image, abs=1e-6)


@pytest.mark.parametrize("name", ["gamma", "inverted_gamma"])
def test_gamma_keeps_order_mean_and_deviation(image, name):
    found, sign = changed(image, name, 1.5), -1 if name == "inverted_gamma" else 1
    for channel, before in zip(found, image, strict=True):
        flat = sign * before.ravel()
        scaled = ((flat - flat.min()) / np.ptp(flat)) ** 1.5
        expected = sign * (scaled - scaled.mean()) / scaled.std() * before.std()
        assert np.abs(channel.ravel() - expected - before.mean()).max() < 1e-2
        assert channel.std() == pytest.approx(before.std(), rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_amount_and_probability_are_those_asked_for(name, image):
    chances = IntensityConfig(**{name: (0.3, 0.5, 0.9)})
    rng = np.random.default_rng(1)
    drawn = [draw_changes(rng, 1, chances)[0] for _ in range(2000)]
    amounts = [amount for channel in drawn for _, amount, _ in channel]
    assert len(amounts) / 2000 == pytest.approx(0.3, abs=0.04)
    assert 0.5 <= min(amounts) < 0.52 and 0.88 < max(amounts) <= 0.9
    assert {kind for channel in drawn for kind, _, _ in channel} == {name}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_draw_makes_the_same_patch_whatever_the_global_state(name, image):
    low, high = getattr(AugmentConfig(kind="nnunet"), name)[1:]
    one = changed(image, name, low, high, seed=3)
    np.random.seed(5)  # noqa: NPY002 - foreign random states play no part
    torch.manual_seed(5)
    two = changed(image, name, low, high, seed=3)
    np.testing.assert_array_equal(one, two)
    assert one.dtype == np.float32 and one.shape == image.shape
    assert not np.array_equal(one, changed(image, name, low, high, seed=4))


@pytest.mark.parametrize("name", NAMES)
def test_a_patch_of_one_value_stays_finite(name):
    flat = np.full((1, 8, 8, 8), 0.5, np.float32)
    for edge in getattr(StrongConfig(), name)[1:]:
        assert np.isfinite(changed(flat, name, edge)).all()
