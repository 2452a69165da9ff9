"""V-Net in the form the semi-supervised literature uses.

Milletari et al., "V-Net", 3DV 2016, as simplified by Yu et al. (UA-MT, MICCAI 2019): 3x3x3
convolutions with batch norm and ReLU, no residual inside a block, skip connections added.

Shapes: B batch, C channels of the image, K classes, (X, Y, Z) voxels, each a multiple of 16.
"""

from itertools import pairwise

from torch import Tensor, nn

from dcamt.networks.backbone import Backbone
from dcamt.networks.convolution import Convolution, Pointwise, Upsampling

STRIDE = 16
"""Voxels of the input along each axis that one bottleneck voxel stands for."""

_ENCODER_CONVOLUTIONS = (1, 2, 3, 3, 3)
_DECODER_CONVOLUTIONS = (3, 3, 2, 1)


def unit(convolution: nn.Module, channels: int) -> nn.Sequential:
    """A convolution to ``channels``, batch norm and ReLU."""
    return nn.Sequential(convolution, nn.BatchNorm3d(channels), nn.ReLU(inplace=True))


def block(channels_in: int, channels: int, convolutions: int) -> nn.Sequential:
    """So many 3x3x3 convolutions, one after the other."""
    sizes = [channels_in] + [channels] * convolutions
    return nn.Sequential(*(unit(Convolution(i, o, 3, padding=1), o) for i, o in pairwise(sizes)))


def descend(x: Tensor, blocks: nn.ModuleList, down: nn.ModuleList) -> tuple[Tensor, list[Tensor]]:
    """What the last of the ``blocks`` gives, with a step ``down`` before each but the first.

    And what the others gave: the skips.
    """
    x, skips = blocks[0](x), []
    for step, convolve in zip(down, blocks[1:], strict=True):
        skips.append(x)
        x = convolve(step(x))
    return x, skips


def ascend(x: Tensor, skips: list[Tensor], up: nn.ModuleList, blocks: nn.ModuleList) -> Tensor:
    """What the last of the ``blocks`` gives, each after a step ``up`` to which a skip is added."""
    for step, convolve, skip in zip(up, blocks, reversed(skips), strict=True):
        x = convolve(step(x) + skip)
    return x


class VNet(Backbone):
    """The backbone of the literature.

    ``width`` is the number of channels at full resolution; it doubles at each of the four
    downsamplings. With 1 channel, 2 classes and width 16 it has 9,448,866 parameters. ``dropout``
    acts on the bottleneck and on the last decoder features.
    """

    usual_width = 16
    norm = "batch"
    stride = (STRIDE, STRIDE, STRIDE)

    def __init__(self, channels: int = 1, classes: int = 2, width: int = 16, dropout: float = 0.0):
        widths = [width * 2**level for level in range(5)]
        super().__init__(channels, classes, features=widths[-1], width=width, dropout=dropout)
        self.encoder = nn.ModuleList(
            block(channels if level == 0 else w, w, n)
            for level, (w, n) in enumerate(zip(widths, _ENCODER_CONVOLUTIONS, strict=True))
        )
        self.down = nn.ModuleList(
            unit(Convolution(i, o, 2, stride=2), o) for i, o in pairwise(widths)
        )
        self.up = nn.ModuleList(unit(Upsampling(i, o), o) for i, o in pairwise(reversed(widths)))
        self.decoder = nn.ModuleList(
            block(w, w, n) for w, n in zip(widths[-2::-1], _DECODER_CONVOLUTIONS, strict=True)
        )
        self.head = Pointwise(width, classes)

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``(B, C, X, Y, Z)`` to bottleneck ``(B, 16 width, X/16, Y/16, Z/16)`` and four skips."""
        return descend(image, self.encoder, self.down)

    def upsample(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        """Bottleneck and skips to what the head reads, ``(B, width, X, Y, Z)``."""
        return ascend(features, skips, self.up, self.decoder)
