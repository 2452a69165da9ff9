"""The box of copy-paste, those of CutMix, and the classes of ClassMix."""

import pytest
import torch

from dcamt.ops.mix import cutmix, paste, random_box, random_classes
from dcamt.types import IGNORE


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


def test_boxes_of_several_sizes_that_leave_padding_alone() -> None:
    inside = torch.ones(3, 8, 10, 12, dtype=torch.bool)
    torch.manual_seed(0)
    boxes = cutmix(inside, torch.tensor([0.5, 0.0, 1.0]))
    assert boxes.dtype == torch.bool
    assert [int(box.sum()) for box in boxes] == [4 * 5 * 6, 0, 8 * 10 * 12]
    inside[0, 6:], inside[2, :, :2] = False, False
    for seed in range(5):
        torch.manual_seed(seed)
        every = cutmix(torch.ones_like(inside), torch.tensor([0.5, 0.9, 0.7]))
        torch.manual_seed(seed)
        found = cutmix(inside, torch.tensor([0.5, 0.9, 0.7]))
        for item in range(3):
            both = inside[item] & inside[item - 1]
            assert torch.equal(found[item], every[item] & both)


def test_pasting_by_hand() -> None:
    values = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]]).view(3, 3, 1, 1)
    taken = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0]]).bool().view(3, 3, 1, 1)
    expected = [[7, 2, 3], [4, 2, 3], [7, 8, 9]]
    assert paste(values, taken).flatten(1).tolist() == expected
    assert paste(values.unsqueeze(1), taken).flatten(1).tolist() == expected
    channels = paste(torch.stack([values, 10 * values], 1), taken)
    assert channels[:, 1].flatten(1).tolist() == [[10 * v for v in row] for row in expected]


def test_half_of_the_classes_that_a_patch_holds() -> None:
    label = torch.zeros(4, 2, 3, 4, dtype=torch.long)
    label[0].view(-1)[:16] = torch.arange(4).repeat(4)  # four classes: two are drawn
    label[1, 0], label[1, 1] = 1, 4  # two, not the lowest: one
    label[2, 0], label[2, 1, 0] = 2, IGNORE  # 0, 2 and padding: one
    draws: list[set[tuple[int, ...]]] = [set() for _ in label]
    for seed in range(40):
        torch.manual_seed(seed)
        mask = random_classes(label, 5)
        assert mask.shape == label.shape
        for item, (own, found) in enumerate(zip(label, mask, strict=True)):
            chosen = sorted(set(own[found].tolist()))
            expected = torch.zeros_like(found)
            for k in chosen:
                expected |= own == k
            assert torch.equal(found, expected), "a class is taken whole or not at all"
            draws[item].add(tuple(chosen))
    assert draws[0] == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}
    assert draws[1:] == [{(1,), (4,)}, {(0,), (2,)}, {()}]
