import numpy as np
import pytest

from dcamt.data.grid import bounding_box, in_c_order


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_box_holds_all_of_a_mask_and_no_more(axes):
    mask = np.zeros((6, 7, 8), bool)
    mask[1, 2, 3] = mask[4, 2, 7] = True
    box = (slice(1, 5), slice(2, 3), slice(3, 8))
    assert bounding_box(mask.transpose(axes)) == tuple(box[axis] for axis in axes)


def test_nothing_has_no_box():
    assert bounding_box(np.zeros((2, 3, 4), bool)) is None


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(2, 70, 5, 33), (1, 4, 6, 3), (64, 3, 40)])
def test_a_copy_in_c_order_holds_the_same(order, shape):
    array = np.asarray(np.random.default_rng(0).normal(size=shape) * 9, order=order)
    for dtype in (None, np.int16):
        copy = in_c_order(array, dtype)
        assert np.array_equal(copy, array if dtype is None else array.astype(dtype))
        assert copy.flags.c_contiguous and copy.flags.writeable
        assert not np.shares_memory(copy, array)
