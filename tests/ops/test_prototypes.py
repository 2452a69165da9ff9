"""Prototypes and cosines by explicit loops."""

import math
from itertools import product

import pytest
import torch

from dcamt.ops.prototypes import cosine, prototypes

B, D, K, SIDE = 2, 3, 4, 2
VOXELS = list(product(range(B), range(SIDE), range(SIDE), range(SIDE)))


@pytest.fixture
def features() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(B, D, SIDE, SIDE, SIDE)


def test_a_prototype_is_the_weighted_mean_over_the_batch(features: torch.Tensor) -> None:
    weight = torch.rand(B, K, SIDE, SIDE, SIDE)
    weight[0, 1] = 0  # a class that only the second patch holds
    weight[:, 3] = 0  # and one that none does
    found = prototypes(features, weight)
    assert found.shape == (K, D)
    for k in range(3):
        total = sum(float(weight[b, k, x, y, z]) for b, x, y, z in VOXELS)
        for d in range(D):
            mean = sum(
                float(weight[b, k, x, y, z]) * float(features[b, d, x, y, z])
                for b, x, y, z in VOXELS
            )
            assert found[k, d].item() == pytest.approx(mean / total, abs=1e-6)
    assert (found[3] == 0).all()


def test_cosines_voxel_by_voxel(features: torch.Tensor) -> None:
    features[0, :, 0, 0, 0] = 0
    classes = torch.randn(K, D)
    classes[2] = 0
    found = cosine(features, classes)
    assert found.shape == (B, K, SIDE, SIDE, SIDE)
    for (b, x, y, z), k in product(VOXELS, range(K)):
        f, c = features[b, :, x, y, z].tolist(), classes[k].tolist()
        dot = sum(i * j for i, j in zip(f, c, strict=True))
        lengths = math.hypot(*f) * math.hypot(*c)
        expected = dot / lengths if lengths else 0.0
        assert found[b, k, x, y, z].item() == pytest.approx(expected, abs=1e-6)


def test_both_are_float32_under_autocast(features: torch.Tensor) -> None:
    weight = torch.rand(B, K, SIDE, SIDE, SIDE)
    expected = cosine(features, prototypes(features, weight))
    with torch.autocast("cpu", torch.bfloat16):
        found = cosine(features, prototypes(features, weight))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
