"""The second head."""

import torch

from dcamt.networks.distance import WithDistance
from dcamt.networks.vnet import VNet


def test_a_map_for_each_foreground_class_beside_the_same_logits() -> None:
    torch.manual_seed(0)
    vnet = VNet(2, 4, 2).eval()
    network = WithDistance(vnet)
    image = 10 * torch.randn(2, 2, 16, 32, 16)
    with torch.no_grad():
        logits, maps = network(image)
        assert torch.equal(logits, vnet(image))
    assert maps.shape == (2, 3, 16, 32, 16)
    assert maps.abs().max() <= 1
    added = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in vnet.parameters())
    assert added == 3 * 2 + 3
