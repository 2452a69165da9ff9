"""Rewrite networks so that they predict faster; the result can be trained no more.

Everything here changes the module in place and leaves its output the same to rounding.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(module: nn.Module) -> None:
    """Make one convolution of every 3D (transposed) convolution followed by a batch norm.

    Pairs are found as neighbours in ``nn.Sequential``, anywhere below ``module``, which must be in
    evaluation mode. Batch norm without running statistics is left alone.
    """
    for sequence in [m for m in module.modules() if isinstance(m, nn.Sequential)]:
        for first, second in list(pairwise(sequence)):
            if not isinstance(second, nn.BatchNorm3d) or second.running_mean is None:
                continue
            if isinstance(first, nn.Conv3d | nn.ConvTranspose3d):
                transposed = isinstance(first, nn.ConvTranspose3d)
                at = list(sequence).index(first)
                sequence[at] = fuse_conv_bn_eval(first, second, transpose=transposed)
                del sequence[at + 1]


def use_onednn(module: nn.Module) -> None:
    """Compute every plain 3D convolution below ``module`` by oneDNN: for float32 on a CPU.

    PyTorch takes its own slow kernel for 1x1x1 convolutions and for single patches of few channels,
    and with it the contiguous layout: both ends of a V-Net, and its bottleneck.
    """
    for name, child in list(module.named_children()):
        if not isinstance(child, nn.Conv3d):
            use_onednn(child)
        elif child.padding_mode == "zeros" and not isinstance(child.padding, str):
            setattr(module, name, _OneDNNConvolution(child, child.padding))


class _OneDNNConvolution(nn.Module):
    def __init__(self, convolution: nn.Conv3d, padding: tuple[int, ...]):
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.padding, self.stride = padding, convolution.stride
        self.dilation, self.groups = convolution.dilation, convolution.groups

    def forward(self, x: Tensor) -> Tensor:
        return torch.mkldnn_convolution(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )
