"""The V-Net on half the grid: its last layer against loops, and what prediction makes of it."""

from itertools import product

import pytest
import torch

from dcamt.networks.folding import fold
from dcamt.networks.light_vnet import LightVNet
from dcamt.networks.vnet import VNet


def some(**options) -> LightVNet:
    """With statistics of batch norm that are not those of a new network."""
    torch.manual_seed(0)
    network = LightVNet(**options).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


def test_its_size() -> None:
    assert sum(p.numel() for p in LightVNet().parameters()) == 433_930
    assert (LightVNet(width=3).features, VNet(width=3).features) == (48, 48)


@torch.no_grad()
def test_each_coarse_voxel_becomes_eight() -> None:
    network = some(width=3)
    features, skips = network.encode(torch.randn(2, 1, 32, 16, 16))
    coarse = []
    network.last.register_forward_hook(lambda _, given, made: coarse.append(made))
    fine = network.upsample(features, skips)
    assert fine.shape == (2, 3, 32, 16, 16)
    for x, y, z in product(range(32), range(16), range(16)):
        eighth = 4 * (x % 2) + 2 * (y % 2) + z % 2
        own = coarse[0][:, 3 * eighth : 3 * eighth + 3, x // 2, y // 2, z // 2]
        assert torch.equal(fine[:, :, x, y, z], own)


@pytest.mark.parametrize(("channels", "classes", "width"), [(1, 2, 4), (2, 7, 3)])
@torch.no_grad()
def test_the_joined_head_changes_nothing(channels, classes, width) -> None:
    network = some(channels=channels, classes=classes, width=width)
    image = torch.randn(2, channels, 16, 32, 16)
    before = network(image)
    fold(network)
    network.head.register_forward_hook(lambda *given: pytest.fail("the head was asked"))
    torch.testing.assert_close(network(image), before, atol=1e-5, rtol=1e-5)
