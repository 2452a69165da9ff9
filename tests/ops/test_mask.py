import pytest
import torch

from dcamt.ops.mask import random_blocks

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("share", "sides", "hidden"),
    [(0.6, (8, 8, 8), 19), (0.5, (16, 8, 4), 16), (0.01, (8, 8, 8), 1), (0.99, (16, 16, 16), 3)],
)
def test_whole_blocks_are_hidden_as_many_of_each_patch(share, sides, hidden) -> None:
    mask = random_blocks((3, 32, 32, 16), sides, share, CPU)
    x, y, z = sides
    blocks = mask.unflatten(1, (-1, x)).unflatten(3, (-1, y)).unflatten(5, (-1, z))
    whole = blocks.movedim((2, 4, 6), (4, 5, 6)).flatten(4).float().mean(4)
    assert set(whole.unique().tolist()) == {0.0, 1.0}
    assert whole.sum((1, 2, 3)).tolist() == [hidden] * 3


def test_a_single_block_is_hidden() -> None:
    assert random_blocks((2, 4, 4, 4), (4, 4, 4), 0.6, CPU).all()


def test_patches_differ_and_the_seed_decides() -> None:
    torch.manual_seed(1)
    one = random_blocks((2, 32, 32, 32), (8, 8, 8), 0.6, CPU)
    torch.manual_seed(1)
    again = random_blocks((2, 32, 32, 32), (8, 8, 8), 0.6, CPU)
    assert torch.equal(one, again)
    assert not torch.equal(one[0], one[1])
