"""The box of copy-paste."""

import pytest
import torch

from dcamt.ops.mix import random_box


@pytest.mark.parametrize("share", [0.1, 0.5, 2 / 3, 1.0])
def test_a_box_of_the_share_of_each_side_that_moves(share: float) -> None:
    shape = (12, 9, 16)
    sides = [max(1, round(share * n)) for n in shape]
    starts = set()
    for seed in range(40):
        torch.manual_seed(seed)
        mask = random_box(shape, share, torch.device("cpu"))
        assert mask.shape == shape
        assert mask.dtype == torch.bool
        where = mask.nonzero()
        low, high = where.min(0).values, where.max(0).values
        assert (high - low + 1).tolist() == sides
        assert len(where) == sides[0] * sides[1] * sides[2]
        starts.add(tuple(low.tolist()))
    assert share == 1 or len(starts) > 10, "the box does not move"
