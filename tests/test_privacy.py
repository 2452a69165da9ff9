"""Differential privacy: the bound on a change, the noise, and what they promise."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from dcamt.privacy import DELTA, clipped, epsilon, noisy


def draw(seed=0, count=20_000):
    """Weights with a counter among them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv": torch.randn(count // 4, 2, 2, generator=generator),
        "bias": torch.randn((), generator=generator),
        "steps": torch.tensor(seed),
    }


def change(one, other):
    return math.sqrt(sum(float((one[n] - other[n]).double().square().sum()) for n in one))


def test_a_change_has_the_bound_and_keeps_its_direction():
    shared, sent = draw(0), draw(1)
    found = clipped(sent, shared, 0.5)
    floats = {name: found[name] for name in ("conv", "bias")}
    assert change(floats, shared) == pytest.approx(0.5, rel=1e-4)
    moved, wanted = (one["conv"] - shared["conv"] for one in (found, sent))
    assert torch.cosine_similarity(moved.flatten(), wanted.flatten(), 0) > 0.9999
    assert found["steps"] == 0  # a counter would tell of the site
    assert all(found[name].dtype == value.dtype for name, value in sent.items())


def test_a_change_within_the_bound_is_left_alone():
    shared, sent = draw(0), draw(1)
    sent["steps"] = shared["steps"]
    found = clipped(sent, shared, 1000.0)
    assert all(torch.equal(found[name], value) for name, value in sent.items())
    same = clipped(shared, shared, 1.0)  # no change at all
    assert all(torch.equal(same[name], value) for name, value in shared.items())


def test_noise_is_gaussian_and_of_the_deviation_that_was_asked_for():
    mean = {"a": torch.zeros(100_000), "b": torch.zeros(100_000), "steps": torch.tensor(7)}
    found = noisy(mean, 0.3, b"secret", 1)
    for name in ("a", "b"):
        z = found[name].double() / 0.3
        assert z.mean().abs() < 0.015
        assert z.std() == pytest.approx(1, abs=0.01)
        for x in (-2.0, -1.0, 0.5, 1.5):
            assert (z < x).double().mean() == pytest.approx(norm.cdf(x), abs=0.006)
    assert torch.corrcoef(torch.stack([found["a"], found["b"]]))[0, 1].abs() < 0.015
    assert found["steps"] == 7


def test_only_the_same_mean_in_the_same_round_gets_the_same_noise():
    mean = draw()
    other = {**mean, "bias": mean["bias"] + 1e-6}

    def noise(weights, secret, number):
        return noisy(weights, 1.0, secret, number)["conv"] - weights["conv"]

    first = noise(mean, b"secret", 1)
    assert torch.equal(noise(mean, b"secret", 1), first)
    for changed in (
        noise(other, b"secret", 1),
        noise(mean, b"other", 1),
        noise(mean, b"secret", 2),
    ):
        assert torch.corrcoef(torch.stack([first.flatten(), changed.flatten()]))[0, 1].abs() < 0.03


@pytest.mark.parametrize(("noise", "rounds"), [(0.7, 1), (1.0, 1), (2.0, 20), (8.0, 100), (4.0, 1)])
def test_epsilon_is_that_of_the_integral_that_defines_it(noise, rounds):
    """Of max(0, p - exp(epsilon) q), with p and q the densities with and without a site."""
    found, shift = epsilon(noise, rounds), math.sqrt(rounds) / noise
    begin = shift / 2 + found / shift  # where p exceeds exp(epsilon) q
    beyond, _ = quad(
        lambda x: norm.pdf(x - shift) - math.exp(found) * norm.pdf(x), begin, begin + 12,
        epsabs=1e-14,
    )  # fmt: skip
    assert beyond == pytest.approx(DELTA, rel=1e-5)


def test_epsilon_meets_known_values():
    # Dong et al., "Gaussian Differential Privacy": delta = F(-e/m + m/2) - exp(e) F(-e/m - m/2);
    # F(-0.5) = 0.308538 and F(-1.5) = 0.066807 stand in every table.
    assert epsilon(1.0, 1, delta=0.308538 - math.e * 0.066807) == pytest.approx(1.0, abs=2e-5)
    assert epsilon(3.0, 9) == epsilon(1.0, 1)  # rounds add up as variances do
    assert epsilon(1e6, 1) == 0
    assert 1 / (2 * 1e-4**2) < epsilon(1e-4, 1) < 1.01 / (2 * 1e-4**2)  # and no overflow
