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
from dcamt.networks.vnet import STRIDE, ascend, block, descend, unit

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
    head: Pointwise

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
        self.head = Pointwise(width, classes)
        self.joined: Convolution | None = None

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``(B, C, X, Y, Z)`` to bottleneck ``(B, 16 width, X/16, Y/16, Z/16)`` and three skips."""
        return descend(self.first(image), self.encoder, self.down)

    def upsample(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        """Bottleneck and skips to what the head reads, ``(B, width, X, Y, Z)``."""
        return _side_by_side(self.last(self._coarse(features, skips)))

    def decode(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        """Bottleneck and skips to logits ``(B, K, X, Y, Z)``."""
        if self.joined is None:
            return super().decode(features, skips)
        return _side_by_side(self.joined(self._coarse(features, skips)))

    def _coarse(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        """Bottleneck and skips to ``(B, 4 width, X/2, Y/2, Z/2)``."""
        return ascend(features, skips, self.up, self.decoder)

    @torch.no_grad()
    def fold(self) -> None:
        """Let one convolution do the work of the last one and the head.

        Nothing stands between the two but dropout, which rests.
        """
        last, head = self.last, self.head
        self.joined = Convolution(last.in_channels, 8 * self.classes, 3, padding=1).to(last.weight)
        for own, new in zip(last.parameters(), self.joined.parameters(), strict=True):
            eighths = own.unflatten(0, (8, -1))  # (8, width, ...): which of the eight voxels
            sums = torch.einsum("kw,ew...->ek...", head.weight.flatten(1), eighths)
            new.copy_(sums.flatten(0, 1))
        assert self.joined.bias is not None and head.bias is not None
        self.joined.bias += head.bias.repeat(8)


def _side_by_side(x: Tensor) -> Tensor:
    """``(B, 8 W, x, y, z)`` to ``(B, W, 2x, 2y, 2z)``: eight voxels in the place of each."""
    x = x.movedim(1, -1).unflatten(-1, (2, 2, 2, -1))  # (B, x, y, z, 2, 2, 2, W)
    x = x.permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.flatten(5, 6).flatten(3, 4).flatten(1, 2).movedim(-1, 1)
