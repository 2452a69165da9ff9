"""A V-Net whose encoder is a 3D ResNet-34."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from dcamt.networks.convolution import Convolution
from dcamt.networks.vnet import VNet

_BLOCKS = (3, 4, 6, 3)


class ResNet34(VNet):
    """The decoder of V-Net on the residual blocks of ResNet-34, with the same inputs and outputs.

    He et al., "Deep residual learning", CVPR 2016, in three dimensions: 3-4-6-3 basic blocks, the
    first of each stage with stride 2. The stem is V-Net's first convolution at full resolution, so
    that there are the same four skips, of ``width`` times 1, 2, 4 and 8 channels.
    """

    def __init__(self, channels: int = 1, classes: int = 2, width: int = 16, dropout: float = 0.0):
        super().__init__(channels, classes, width, dropout)
        widths = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(BasicBlock(i, o, stride=2) for i, o in pairwise(widths))
        stages = (
            nn.Sequential(*(BasicBlock(w, w) for _ in range(blocks - 1)))
            for w, blocks in zip(widths[1:], _BLOCKS, strict=True)
        )
        self.encoder = nn.ModuleList([self.encoder[0], *stages])


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions with batch norm, and what they are added to."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1):
        super().__init__()
        self.convolution_1 = Convolution(channels_in, channels, 3, stride, 1, bias=False)
        self.norm_1 = nn.BatchNorm3d(channels)
        self.convolution_2 = Convolution(channels, channels, 3, padding=1, bias=False)
        self.norm_2 = nn.BatchNorm3d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                Convolution(channels_in, channels, 1, stride, bias=False), nn.BatchNorm3d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels_in, X, Y, Z)`` to ``(B, channels, X/stride, Y/stride, Z/stride)``."""
        residual = F.relu(self.norm_1(self.convolution_1(x)))
        residual = self.norm_2(self.convolution_2(residual))
        return F.relu(residual + self.shortcut(x))
