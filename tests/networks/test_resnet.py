"""The ResNet: its parameters, its shapes and its shortcuts."""

import pytest
import torch

from dcamt.networks.resnet import BasicBlock, ResNet34
from dcamt.networks.vnet import VNet


def test_parameters_by_hand() -> None:
    """33 convolutions of ResNet-34's stages and V-Net's stem, decoder and head."""
    width, widths, blocks = 4, (4, 8, 16, 32, 64), (3, 4, 6, 3)
    expected = 27 * width + width + 2 * width  # stem with bias and norm
    for i, o, count in zip(widths, widths[1:], blocks, strict=False):
        expected += 27 * i * o + 27 * o * o * (2 * count - 1) + 2 * o * 2 * count
        expected += i * o + 2 * o  # the shortcut that changes size
    for i, o, count in zip(widths[:0:-1], widths[-2::-1], (3, 3, 2, 1), strict=True):
        expected += 8 * i * o + o + 2 * o + count * (27 * o * o + o + 2 * o)
    expected += width * 2 + 2
    assert sum(p.numel() for p in ResNet34(1, 2, width).parameters()) == expected


@pytest.mark.parametrize("size", [(16, 16, 16), (48, 16, 32)])
def test_it_is_used_like_a_vnet(size: tuple[int, int, int]) -> None:
    network, vnet = ResNet34(2, 3, 2), VNet(2, 3, 2)
    image = torch.randn(2, 2, *size)
    features, skips = network.encode(image)
    others, expected = vnet.encode(image)
    assert features.shape == others.shape
    assert [s.shape for s in skips] == [s.shape for s in expected]
    assert network(image).shape == vnet(image).shape


@torch.no_grad()
def test_a_block_adds_its_residual() -> None:
    block = BasicBlock(3, 3).eval()
    x = torch.randn(1, 3, 4, 4, 4)
    block.norm_2.weight.zero_()
    torch.testing.assert_close(block(x), x.relu())
    block.norm_2.bias.fill_(0.5)
    torch.testing.assert_close(block(x), (x + 0.5).relu())
