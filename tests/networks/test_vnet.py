"""The V-Net of the literature: its size, its stages and its shapes."""

import pytest
import torch
from torch import nn

from dcamt.networks.convolution import channels_last
from dcamt.networks.vnet import STRIDE, VNet


def convolutions(module: nn.Module, size: int, kind: type = nn.Conv3d) -> list[tuple[int, int]]:
    """Input and output channels of every convolution of ``size`` ^3 voxels, in order."""
    found = [m for m in module.modules() if isinstance(m, kind) and m.kernel_size == (size,) * 3]
    return [(m.in_channels, m.out_channels) for m in found]


def test_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        network = VNet(channels=1, classes=2, width=16)
    assert sum(p.numel() for p in network.parameters()) == 9_448_866


def test_stages_are_those_of_the_literature() -> None:
    with torch.device("meta"):
        network = VNet(channels=3, classes=5, width=16)
    encoder = [convolutions(stage, 3) for stage in network.encoder]
    assert [len(stage) for stage in encoder] == [1, 2, 3, 3, 3]
    assert [stage[-1][1] for stage in encoder] == [16, 32, 64, 128, 256]
    assert encoder[0] == [(3, 16)]
    decoder = [convolutions(stage, 3) for stage in network.decoder]
    assert [len(stage) for stage in decoder] == [3, 3, 2, 1]
    # Skips are added: a decoder stage sees as many channels as it gives.
    assert [set(stage) for stage in decoder] == [{(c, c)} for c in (128, 64, 32, 16)]
    assert convolutions(network.down, 2) == [(16, 32), (32, 64), (64, 128), (128, 256)]
    ups = convolutions(network.up, 2, nn.ConvTranspose3d)
    assert ups == [(256, 128), (128, 64), (64, 32), (32, 16)]
    assert network.head.weight.shape == (5, 16, 1, 1, 1)
    norms = sum(isinstance(m, nn.BatchNorm3d) for m in network.modules())
    assert norms == sum(isinstance(m, nn.ReLU) for m in network.modules()) == 12 + 4 + 4 + 9


@pytest.mark.parametrize(
    ("channels", "classes", "width", "size"),
    [(1, 2, 2, (32, 16, 16)), (2, 5, 3, (16, 32, 48)), (4, 3, 1, (16, 16, 16))],
)
def test_shapes(channels: int, classes: int, width: int, size: tuple[int, int, int]) -> None:
    network = VNet(channels, classes, width).eval()
    image = torch.randn(2, channels, *size)
    features, skips = network.encode(image)
    assert features.shape == (2, 16 * width, *(side // STRIDE for side in size))
    assert network.features == 16 * width
    assert [s.shape[1:] for s in skips] == [
        (width * 2**level, *(side // 2**level for side in size)) for level in range(4)
    ]
    assert network(image).shape == (2, classes, *size)


def test_forward_is_decode_of_encode_and_the_skips_matter() -> None:
    torch.manual_seed(0)
    network = VNet(1, 2, 2)
    image = torch.randn(1, 1, 32, 16, 16)
    with torch.no_grad():
        features, skips = network.encode(image)
        whole = network(image)
        torch.testing.assert_close(network.decode(features, skips), whole)
        for level in range(4):
            without = [s * (i != level) for i, s in enumerate(skips)]
            assert not torch.allclose(network.decode(features, without), whole, atol=1e-3)


def test_an_axis_is_never_swapped() -> None:
    """A change at one end of the first axis stays there in the full-resolution skip."""
    network = VNet(1, 2, 2).eval()
    image = torch.zeros(1, 1, 48, 16, 32)
    changed = image.clone()
    changed[:, :, 0] = 5
    difference = (network.encode(changed)[1][0] - network.encode(image)[1][0]).abs()
    assert difference[:, :, :2].sum() > 0
    assert difference[:, :, 2:].sum() == 0


def test_dropout_is_random_in_training_only() -> None:
    torch.manual_seed(0)
    network = VNet(1, 2, 2, dropout=0.5)
    image = torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        assert not torch.equal(network(image), network(image))
        network.eval()
        assert torch.equal(network(image), network(image))


def test_every_feature_map_is_laid_out_channels_last() -> None:
    """One contiguous tensor in between costs a copy at each of its uses."""
    network = VNet(1, 2, 2)
    channels_last(network)
    mixed = []

    def look(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if not output.is_contiguous(memory_format=torch.channels_last_3d):
            mixed.append(module)

    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.BatchNorm3d):
            module.register_forward_hook(look)
    network(torch.randn(2, 1, 32, 32, 16))
    assert not mixed
