"""Convolutions that PyTorch computes slowly on a CPU, computed otherwise.

Parameters, their names and, to rounding, the results are those of the layers they derive from.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv3d_weight


def take_fast_convolutions(module: nn.Module) -> None:
    """Make a Convolution of every plain one in ``module``, in place; weights stay as they are."""
    for layer in module.modules():
        if type(layer) is nn.Conv3d:
            layer.__class__ = _faster(layer)


def channels_last(module: nn.Module) -> None:
    """Lay 5D weights out channels-last, in place: what the fast convolution kernels want.

    Strides are written out also where a side of 1 leaves them ambiguous (the first convolution of
    one channel, the 1x1x1 head): PyTorch takes the layout of the output from them, and one
    contiguous tensor in between costs a copy at each of its uses.
    """
    for parameter in module.parameters():
        if parameter.ndim == 5:
            laid = torch.empty_like(parameter, memory_format=torch.channels_last_3d)
            parameter.data = laid.copy_(parameter.data)


def _faster(layer: nn.Conv3d) -> type[nn.Conv3d]:
    ones = (1, 1, 1)
    plain = layer.stride == layer.dilation == ones and layer.padding_mode == "zeros"
    same = all(k % 2 for k in layer.kernel_size) and layer.padding == _half(layer.kernel_size)
    if not plain or not same:
        return Convolution
    if layer.kernel_size == ones and layer.groups == 1:
        return Pointwise
    alone = layer.groups == layer.in_channels == layer.out_channels > 1
    return Depthwise if alone else Convolution


_SMALL = 20480
"""Values of a patch but for its last axis, up to which PyTorch leaves out oneDNN for one patch."""


class Convolution(nn.Conv3d):
    """Computed by oneDNN in float32, a single patch too.

    For single patches of few channels PyTorch takes a slow kernel of its own, and with it the
    contiguous layout: the first convolution of a V-Net, and those of its coarse levels. Where
    nothing is trained, oneDNN is asked directly. It has no gradients then, so a patch that is
    trained on gets a second one of zeros beside it: for two PyTorch takes oneDNN.
    """

    def forward(self, x: Tensor) -> Tensor:
        if (
            x.device.type != "cpu"
            or x.dtype != torch.float32
            or torch.is_autocast_enabled("cpu")
            or _is_recorded()
            or not torch.backends.mkldnn.is_available()
            or isinstance(self.padding, str)
            or self.padding_mode != "zeros"
        ):
            return super().forward(x)
        if not torch.is_grad_enabled():
            return torch.mkldnn_convolution(
                x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
            )
        if len(x) == 1 and self.groups == 1 and x.shape[:4].numel() <= _SMALL:
            return super().forward(torch.cat([x, torch.zeros_like(x)]))[:1]
        return super().forward(x)


def _is_recorded() -> bool:
    """Whether a graph is made of what is computed, for OpenVINO, ONNX or TorchScript.

    Those programs know PyTorch's own layers and not oneDNN's.
    """
    return torch.jit.is_tracing() or torch.compiler.is_exporting()  # type: ignore[attr-defined]


class Pointwise(nn.Conv3d):
    """A 1x1x1 convolution as a matrix product: on one thread PyTorch's own takes a slow way."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__(channels_in, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.flatten(1)
        return F.linear(x.movedim(1, -1), weight, self.bias).movedim(-1, 1)


class Depthwise(nn.Conv3d):
    """A convolution of every channel by itself, to the same size: (B, C, X, Y, Z) to the same.

    PyTorch computes its gradients slowly. The gradient of the input is a convolution with the
    mirrored kernel: computed as such, it takes an eighth of the time. The gradient of the weight is
    computed for groups of eight channels, each with each, which is faster although seven of eight
    results are thrown away.
    """

    def forward(self, x: Tensor) -> Tensor:
        trained = torch.is_grad_enabled() and x.device.type == "cpu"
        if not trained or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return _Depthwise.apply(x, self.weight, self.bias)


class _Depthwise(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _depthwise(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        channels, _, *kernel = weight.shape
        for_x = _depthwise(gradient, weight.flip(2, 3, 4))
        together = math.gcd(channels, 8)
        among = (channels, together, *kernel)
        groups = channels // together
        for_all = conv3d_weight(x, among, gradient, padding=_half(kernel), groups=groups)
        by_group = for_all.reshape(-1, together, together, *kernel)
        for_weight = by_group.diagonal(dim1=1, dim2=2).movedim(-1, 1).reshape(weight.shape)
        for_bias = gradient.sum((0, 2, 3, 4)) if ctx.has_bias else None
        return for_x, for_weight, for_bias


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv3d(x, weight, bias, padding=_half(weight.shape[2:]), groups=len(weight))


def _half(kernel: Sequence[int]) -> tuple[int, ...]:
    return tuple(k // 2 for k in kernel)


class Upsampling(nn.ConvTranspose3d):
    """The 2x2x2 transposed convolution that doubles every side.

    Its gradients are those of the convolution it transposes; PyTorch's own take three times as
    long, nearly all of it for the bias.
    """

    def __init__(self, channels_in: int, channels: int):
        super().__init__(channels_in, channels, 2, stride=2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x, output_size)
        return _Upsampling.apply(x, self.weight, self.bias)


class _Upsampling(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv_transpose3d(x, weight, bias, stride=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = (each.to(gradient.dtype) for each in ctx.saved_tensors)
        for_x = F.conv3d(gradient, weight, stride=2)
        for_weight = conv3d_weight(gradient, weight.shape, x, stride=2)
        for_bias = gradient.sum((0, 2, 3, 4), dtype=ctx.saved_tensors[1].dtype)
        return for_x, for_weight, for_bias
