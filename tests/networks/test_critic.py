"""The critic: its size and what it looks at."""

import torch

from dcamt.networks.critic import Critic


def test_one_number_per_voxel_from_that_voxel_alone() -> None:
    torch.manual_seed(0)
    critic = Critic(maps=3, width=4)
    maps = torch.rand(2, 3, 4, 5, 6)
    with torch.no_grad():
        whole = critic(maps)
        assert whole.shape == (2, 4, 5, 6)
        other = maps.clone()
        other[1, :, 2, 3, 4] = torch.tensor([0.9, 0.0, 0.1])
        changed = critic(other) != whole
    assert changed.nonzero().tolist() == [[1, 2, 3, 4]]


def test_parameters_by_hand() -> None:
    layers = [(2, 16), (16, 32), (32, 64), (64, 1)]
    expected = sum(i * o + o for i, o in layers)
    assert sum(p.numel() for p in Critic(maps=2, width=16).parameters()) == expected
