"""Signed distance maps against a search over all voxels and against SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt

from dcamt.ops.distance import signed_distance, signed_distances
from dcamt.types import IGNORE


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros((9, 7, 6), bool)
    mask[2:7, 1:6, 1:5] = True
    mask[2, 1] = False
    return mask


def test_a_map_against_a_search_over_all_voxels(mask: np.ndarray) -> None:
    found = signed_distance(mask)
    inner, outer = np.argwhere(mask).tolist(), np.argwhere(~mask).tolist()
    distances = {
        **{tuple(v): -min(math.dist(v, w) for w in outer) for v in inner},
        **{tuple(v): min(math.dist(v, w) for w in inner) for v in outer},
    }
    deepest, farthest = min(distances.values()), max(distances.values())
    for voxel, distance in distances.items():
        scaled = distance / (farthest if distance > 0 else -deepest)
        assert found[voxel] == pytest.approx(0 if distance == -1 else scaled, abs=1e-6)
    assert (found.min(), found.max(), found.dtype) == (-1, 1, np.float32)


def test_a_map_against_scipy(mask: np.ndarray) -> None:
    found = signed_distance(mask)
    inside, outside = distance_transform_edt(mask), distance_transform_edt(~mask)
    interior = binary_erosion(mask, border_value=1)
    np.testing.assert_allclose(found[~mask], (outside / outside.max())[~mask], rtol=1e-6)
    np.testing.assert_allclose(found[interior], -(inside / inside.max())[interior], rtol=1e-6)
    assert not found[mask & ~interior].any()


def test_every_foreground_class_has_its_map() -> None:
    label = torch.zeros(2, 5, 4, 6, dtype=torch.long)
    label[0, 1:4, 1:3, 1:5], label[0, 0, 0, 0] = 2, 1
    label[1, 3:] = IGNORE
    label[1, 0] = 1
    found = signed_distances(label, 3)
    assert found.shape == (2, 2, 5, 4, 6)
    for b in range(2):
        for k in (1, 2):
            expected = torch.from_numpy(signed_distance((label[b] == k).numpy()))
            assert torch.equal(found[b, k - 1], expected)
    assert (found[1, 1] == 1).all(), "an absent class is outside everywhere"
    assert (signed_distances(torch.ones_like(label), 2) == -1).all()
