"""The box of copy-paste."""

import pytest
import torch

from dcamt.ops.mix import random_box

CPU = torch.device("cpu")


@pytest.mark.parametrize("share", [0.1, 0.5, 2 / 3, 1.0])
def test_a_box_of_the_share_of_each_side_or_its_outside(share: float) -> None:
    shape = (12, 9, 16)
    sides = [max(1, round(share * n)) for n in shape]
    inner = 0
    starts = set()
    for seed in range(40):
        torch.manual_seed(seed)
        mask = random_box(shape, share, CPU)
        assert mask.shape == shape
        assert mask.dtype == torch.bool
        is_box = int(mask.sum()) == sides[0] * sides[1] * sides[2]
        inner += is_box
        box = mask if is_box else ~mask
        where = box.nonzero()
        low, high = where.min(0).values, where.max(0).values
        assert (high - low + 1).tolist() == sides
        assert len(where) == sides[0] * sides[1] * sides[2]
        starts.add(tuple(low.tolist()))
    assert 8 <= inner <= 32, "either case should give the inner part about as often"
    assert share == 1 or len(starts) > 10, "the box does not move"
