"""The discriminator: its size and what it looks at."""

import pytest
import torch

from dcamt.networks.discriminator import Discriminator


@pytest.mark.parametrize("size", [(16, 16, 16), (48, 16, 32)])
def test_one_number_per_patch_of_any_size(size: tuple[int, int, int]) -> None:
    network = Discriminator(channels=2, maps=3, width=4)
    assert network(torch.randn(5, 3, *size), torch.randn(5, 2, *size)).shape == (5,)


def test_parameters_by_hand() -> None:
    network = Discriminator(channels=1, maps=1, width=64)
    layers = [(1, 64), (1, 64), (64, 128), (128, 256), (256, 512)]
    expected = sum(64 * i * o + o for i, o in layers) + 512 + 1
    assert sum(p.numel() for p in network.parameters()) == expected


@torch.no_grad()
def test_maps_and_image_both_count() -> None:
    torch.manual_seed(0)
    network = Discriminator(1, 1, 4).eval()
    maps, image = torch.randn(2, 1, 16, 16, 16), torch.randn(2, 1, 16, 16, 16)
    whole = network(maps, image)
    assert not torch.allclose(network(0 * maps, image), whole, atol=1e-5)
    assert not torch.allclose(network(maps, 0 * image), whole, atol=1e-5)
    assert torch.allclose(network(maps[1:], image[1:]), whole[1:])
