"""Rewrite networks so that they predict faster; the result can be trained no more.

Everything here changes the module in place and leaves its output the same to rounding.
"""

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dcamt.networks.backbone import Backbone


def fold(module: nn.Module) -> None:
    """All that can be folded in ``module``, which must be in evaluation mode."""
    fold_batch_norm(module)
    for network in module.modules():
        if isinstance(network, Backbone):
            network.fold()


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
