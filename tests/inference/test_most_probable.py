"""From probabilities on the network's grid to classes on the scan's."""

import numpy as np
import pytest
import torch

from dcamt.data.grid import bounding_box
from dcamt.data.space import Placement, restore
from dcamt.inference.predict import most_probable, restored_probabilities


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_most_probable_is_argmax_also_where_classes_are_level(classes: int) -> None:
    values = np.random.default_rng(0).integers(0, 4, (classes, 5, 6, 7)).astype(np.float32)
    found = most_probable(values)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, values.argmax(0))


def test_the_background_is_what_the_others_leave() -> None:
    """Within the crop as if it had been interpolated itself, and 1 outside."""
    content = np.zeros((9, 8, 7), bool)
    content[2:8, 1:7, 1:6] = True
    box = bounding_box(content)
    assert box is not None
    axes = np.array([[1, 1], [0, -1], [2, 1]], float)  # the scan's axes are others, one turned
    placement = Placement((8, 9, 7), np.eye(4), axes, box, (6, 6, 5))
    prepared = torch.randn(3, 4, 3, 5, generator=torch.Generator().manual_seed(0)).softmax(0)
    found, plain = restored_probabilities(prepared, placement), restore(prepared, placement)
    inside = plain.sum(0) > 0
    assert inside.sum() == 6 * 6 * 5
    np.testing.assert_allclose(found[:, inside], plain[:, inside], atol=1e-6)
    np.testing.assert_array_equal(found[:, ~inside].T, [[1, 0, 0]] * int((~inside).sum()))
    assert found.min() >= 0
