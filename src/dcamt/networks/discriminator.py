"""A network that judges a whole patch."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class Discriminator(nn.Module):
    """One number per patch from its image and its distance maps.

    Li et al., SASSNet, MICCAI 2020: both are convolved apart and added, then three more stride-2
    4x4x4 convolutions with leaky ReLU and dropout, and one linear layer on the mean over the patch.
    ``width`` is the number of channels of the first layer, doubled in each of the others. Needs
    at least 16 voxels along each axis.
    """

    def __init__(self, channels: int, maps: int, width: int):
        super().__init__()
        widths = [width * 2**level for level in range(4)]
        self.image = nn.Conv3d(channels, width, 4, 2, 1)
        self.maps = nn.Conv3d(maps, width, 4, 2, 1)
        self.deeper = nn.ModuleList(nn.Conv3d(i, o, 4, 2, 1) for i, o in pairwise(widths))
        self.dropout = nn.Dropout3d(0.5)
        self.head = nn.Linear(widths[-1], 1)

    def forward(self, maps: Tensor, image: Tensor) -> Tensor:
        """``(B, K - 1, X, Y, Z)`` and ``(B, C, X, Y, Z)`` to ``(B,)``, one logit each."""
        x = self.maps(maps) + self.image(image)
        for convolution in self.deeper:
            x = convolution(self.dropout(F.leaky_relu(x, 0.2)))
        return self.head(F.leaky_relu(x, 0.2).mean((2, 3, 4))).squeeze(1)
