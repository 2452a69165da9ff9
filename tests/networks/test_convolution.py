"""Our convolutions against PyTorch's own, results and gradients."""

import copy

import pytest
import torch
from torch import nn

from dcamt.networks.convolution import (
    Convolution,
    Depthwise,
    Pointwise,
    Upsampling,
    take_fast_convolutions,
)

LAYERS = [
    Convolution(6, 3, 3, padding=1),
    Convolution(6, 3, 2, stride=2, bias=False),
    Convolution(6, 4, 3, padding=2, dilation=2, groups=2),
    Pointwise(6, 3),
    Depthwise(6, 6, 3, padding=1, groups=6),
    Depthwise(6, 6, (1, 3, 5), padding=(0, 1, 2), groups=6, bias=False),
    Upsampling(6, 3),
]
NAMES = ["3x3x3", "strided", "in groups", "pointwise", "depthwise", "flat", "upsampling"]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=NAMES)


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
    return [y, x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("patches", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@every_layer
def test_results_and_gradients_are_those_of_pytorch(layer, layout, patches, autocast):
    torch.manual_seed(0)
    x = torch.randn(patches, 6, 4, 6, 8).contiguous(memory_format=layout)
    layer = copy.deepcopy(layer)
    ours, theirs = outcome(layer, x, autocast), outcome(plain(layer), x, autocast)
    tolerance = 0.02 if autocast else 1e-5
    for got, expected in zip(ours, theirs, strict=True):
        assert got.dtype == expected.dtype
        assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@every_layer
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("patches", [1, 2])
def test_results_without_gradients_are_those_of_pytorch(layer, patches, autocast):
    torch.manual_seed(0)
    x = torch.randn(patches, 6, 4, 6, 8)
    with torch.no_grad(), torch.autocast("cpu", enabled=autocast):
        got, expected = layer(x), plain(layer)(x)
    assert got.dtype == expected.dtype
    assert (got - expected).abs().max() <= (0.02 if autocast else 1e-5) * expected.abs().max()


LAID_OUT = [(layer, patches, False) for layer in LAYERS for patches in (1, 2)]
LAID_OUT += [(layer, 2, True) for layer in LAYERS]
LAID_OUT += [(layer, 1, True) for layer in LAYERS[:2]]
LAID_OUT.remove((LAYERS[-1], 1, False))  # of one small patch oneDNN offers no transposed one


@pytest.mark.parametrize(("layer", "patches", "trained"), LAID_OUT)
def test_the_output_is_laid_out_channels_last(layer, patches, trained):
    """PyTorch's own is not, of a single patch."""
    x = torch.randn(patches, 6, 4, 6, 8).contiguous(memory_format=torch.channels_last_3d)
    layer = copy.deepcopy(layer).to(memory_format=torch.channels_last_3d)
    with torch.set_grad_enabled(trained):
        assert layer(x).is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("patches", [1, 2])
def test_no_patch_is_trained_on_by_a_slow_kernel(patches):
    layer, x = Convolution(6, 6, 3, padding=1), torch.randn(patches, 6, 8, 8, 8)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        layer(x).sum().backward()
    kernels = {event.key for event in seen.key_averages() if "conv" in event.key}
    assert "aten::mkldnn_convolution" in kernels
    assert not any("slow" in kernel for kernel in kernels)


def test_upsampling_has_right_gradients_in_double_precision():
    layer = Upsampling(2, 3).double()
    x = torch.randn(2, 2, 2, 1, 2, dtype=torch.float64, requires_grad=True)

    def call(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    assert torch.autograd.gradcheck(call, (x, layer.weight, layer.bias))


@every_layer
def test_states_are_those_of_the_layers_of_pytorch(layer):
    assert plain(layer).state_dict().keys() == layer.state_dict().keys()
    assert type(plain(layer)) in (nn.Conv3d, nn.ConvTranspose3d)


def test_depthwise_has_right_gradients_in_double_precision():
    layer = Depthwise(16, 16, 3, padding=1, groups=16).double()
    x = torch.randn(1, 16, 2, 1, 3, dtype=torch.float64, requires_grad=True)

    def call(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    assert torch.autograd.gradcheck(call, (x, layer.weight, layer.bias))


KINDS = [
    (nn.Conv3d(4, 6, 3, padding=1), Convolution),
    (nn.Conv3d(4, 6, 1), Pointwise),
    (nn.Conv3d(4, 6, 1, stride=2), Convolution),
    (nn.Conv3d(4, 6, 1, padding=1), Convolution),
    (nn.Conv3d(4, 4, 3, padding=1, groups=4), Depthwise),
    (nn.Conv3d(4, 8, 3, padding=1, groups=4), Convolution),
    (nn.Conv3d(4, 4, 3, stride=2, padding=1, groups=4), Convolution),
    (nn.Conv3d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"), Convolution),
    (nn.Conv3d(4, 4, 2, groups=4), Convolution),
    (nn.Conv3d(1, 1, 3, padding=1), Convolution),
]


@pytest.mark.parametrize(("layer", "kind"), KINDS)
def test_the_layers_of_libraries_become_ours(layer, kind):
    layer, x = copy.deepcopy(layer), torch.randn(2, layer.in_channels, 4, 6, 4)
    expected = layer(x)
    take_fast_convolutions(layer)
    assert type(layer) is kind
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_a_double_convolution_is_left_to_pytorch():
    layer = Convolution(2, 3, 3, padding=1).double()
    x = torch.randn(1, 2, 4, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(layer(x), plain(layer)(x))


@pytest.mark.parametrize(
    "options", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}]
)
def test_every_kind_of_padding_is_that_of_pytorch(options):
    layer = Convolution(4, 6, 3, **options)
    x = torch.randn(1, 4, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain(layer)(x), atol=1e-5, rtol=1e-5)
