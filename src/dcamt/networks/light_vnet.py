"""A V-Net on half the grid: what `dcamt distill` makes of a V-Net.

On a processor most of the time of a narrow V-Net goes into layers at full resolution, whose few
channels fill no vector unit. Here the first convolution halves each axis, and the last one writes
the eight voxels of each coarse one side by side ("sub-pixel convolution", Shi et al., CVPR 2016).
Blocks, skips and bottleneck are those of vnet.py.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from dcamt.networks.backbone import Backbone
from dcamt.networks.convolution import Convolution, Pointwise, Upsampling
from dcamt.networks.vnet import STRIDE, block, unit

_ENCODER_CONVOLUTIONS = (1, 2, 2, 2)
_DECODER_CONVOLUTIONS = (2, 2, 1)


class LightVNet(Backbone):
    """Four levels of ``4 width``, ``4 width``, ``8 width`` and ``16 width`` channels.

    Its bottleneck is that of a V-Net of the same ``width``. With 1 channel, 2 classes and width 4
    it has 433,930 parameters. ``dropout`` acts on the bottleneck and on what the head reads.
    """

    usual_width = 4
    norm = "batch"
    stride = (STRIDE, STRIDE, STRIDE)

    def __init__(self, channels: int = 1, classes: int = 2, width: int = 4, dropout: float = 0.0):
        widths = [4 * width, 4 * width, 8 * width, 16 * width]
        super().__init__(channels, classes, features=widths[-1], width=width, dropout=dropout)
        self.first = unit(Convolution(channels, widths[0], 2, stride=2), widths[0])
        self.encoder = nn.ModuleList(
            block(w, w, n) for w, n in zip(widths, _ENCODER_CONVOLUTIONS, strict=True)
        )
        self.down = nn.ModuleList(
            unit(Convolution(i, o, 2, stride=2), o) for i, o in pairwise(widths)
        )
        self.up = nn.ModuleList(unit(Upsampling(i, o), o) for i, o in pairwise(reversed(widths)))
        self.decoder = nn.ModuleList(
            block(w, w, n) for w, n in zip(widths[-2::-1], _DECODER_CONVOLUTIONS, strict=True)
        )
        self.last = Convolution(widths[0], 8 * width, 3, padding=1)
        self.head: Pointwise | nn.Identity = Pointwise(width, classes)

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``(B, C, X, Y, Z)`` to bottleneck ``(B, 16 width, X/16, Y/16, Z/16)`` and three skips."""
        skips = []
        x = self.encoder[0](self.first(image))
        for down, convolutions in zip(self.down, self.encoder[1:], strict=True):
            skips.append(x)
            x = convolutions(down(x))
        return x, skips

    def upsample(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        """Bottleneck and skips to what the head reads, ``(B, width, X, Y, Z)``."""
        x = features
        for up, convolutions, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            x = convolutions(up(x) + skip)
        return _side_by_side(self.last(x))

    @torch.no_grad()
    def join_head(self) -> None:
        """Make one of the last convolution and the head, in place; the output stays the same.

        Nothing may stand between them then: it is for networks that only predict.
        """
        last, head = self.last, self.head
        assert isinstance(head, Pointwise) and last.bias is not None and head.bias is not None
        classes = head.out_channels
        joined = Convolution(last.in_channels, 8 * classes, 3, padding=1).to(last.weight)
        assert joined.bias is not None
        for own, new in ((last.weight, joined.weight), (last.bias, joined.bias)):
            eighths = own.unflatten(0, (8, -1))  # (8, width, ...): which of the eight voxels
            new.copy_(
                torch.einsum("kw,ew...->ek...", head.weight.flatten(1), eighths).flatten(0, 1)
            )
        joined.bias += head.bias.repeat(8)
        self.last, self.head, self.width = joined, nn.Identity(), classes


def _side_by_side(x: Tensor) -> Tensor:
    """``(B, 8 W, x, y, z)`` to ``(B, W, 2x, 2y, 2z)``: eight voxels in the place of each."""
    x = x.movedim(1, -1).unflatten(-1, (2, 2, 2, -1))  # (B, x, y, z, 2, 2, 2, W)
    x = x.permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.flatten(5, 6).flatten(3, 4).flatten(1, 2).movedim(-1, 1)
