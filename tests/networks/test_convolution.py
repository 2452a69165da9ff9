"""Our convolutions against PyTorch's own, results and gradients."""

import copy

import pytest
import torch
from torch import nn

from dcamt.networks.convolution import Pointwise, Upsampling

LAYERS = [Pointwise(6, 3), Upsampling(6, 3)]


def plain(layer):
    """The layer of PyTorch that ours derives from, with the same weights."""
    found = copy.deepcopy(layer)
    found.__class__ = type(layer).__base__
    return found


def outcome(layer, x, autocast):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", enabled=autocast):
        y = layer(x)
        loss = (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum()
    loss.backward()
    return [y, x.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("patches", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_results_and_gradients_are_those_of_pytorch(layer, layout, patches, autocast):
    torch.manual_seed(0)
    x = torch.randn(patches, 6, 4, 6, 8).contiguous(memory_format=layout)
    layer = copy.deepcopy(layer)
    ours, theirs = outcome(layer, x, autocast), outcome(plain(layer), x, autocast)
    tolerance = 0.02 if autocast else 1e-5
    for got, expected in zip(ours, theirs, strict=True):
        assert got.dtype == expected.dtype
        assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_the_output_is_laid_out_channels_last(layer):
    x = torch.randn(2, 6, 4, 6, 8).contiguous(memory_format=torch.channels_last_3d)
    layer = layer.to(memory_format=torch.channels_last_3d)
    assert layer(x).is_contiguous(memory_format=torch.channels_last_3d)


def test_upsampling_has_right_gradients_in_double_precision():
    layer = Upsampling(2, 3).double()
    x = torch.randn(2, 2, 2, 1, 2, dtype=torch.float64, requires_grad=True)

    def call(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    assert torch.autograd.gradcheck(call, (x, layer.weight, layer.bias))


def test_states_are_those_of_the_layers_of_pytorch():
    for ours, theirs in zip(LAYERS, [nn.Conv3d(6, 3, 1), nn.ConvTranspose3d(6, 3, 2)], strict=True):
        theirs.load_state_dict(ours.state_dict())
