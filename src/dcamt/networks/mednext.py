"""MedNeXt: depthwise convolutions between wide 1x1x1 ones, as transformers have their layers.

Roy et al., "MedNeXt: Transformer-driven scaling of ConvNets for medical image segmentation",
MICCAI 2023, with kernels of 3 and without deep supervision. The layers are MONAI's.
"""

from torch import Tensor

from dcamt.networks.backbone import Backbone
from dcamt.networks.convolution import Pointwise

# Of each size: how much each level of the encoder, and the bottleneck, widens within its blocks,
# and how many blocks they have. The decoder mirrors the encoder.
_SIZES = {
    "S": ((2, 2, 2, 2), 2, (2, 2, 2, 2), 2),
    "B": ((2, 3, 4, 4), 4, (2, 2, 2, 2), 2),
    "M": ((2, 3, 4, 4), 4, (3, 4, 4, 4), 4),
    "L": ((3, 4, 8, 8), 8, (3, 4, 8, 8), 8),
}


class MedNeXt(Backbone):
    """Four downsamplings, within blocks of the same kind; skips are added.

    ``width`` doubles at each downsampling. With 1 channel, 2 classes and width 32 the sizes S, B, M
    and L have 5.6, 10.5, 17.5 and 61.7 million parameters.
    """

    usual_width = 32
    sizes = tuple(_SIZES)
    stride = (16, 16, 16)

    def __init__(
        self,
        channels: int = 1,
        classes: int = 2,
        width: int = 32,
        dropout: float = 0.0,
        size: str = "S",
    ):
        super().__init__(channels, classes, features=16 * width, width=width, dropout=dropout)
        from monai.networks.nets.mednext import MedNeXt as Layers

        ratios, deepest, blocks, deepest_blocks = _SIZES[size]
        self.layers = Layers(
            init_filters=width,
            in_channels=channels,
            encoder_expansion_ratio=ratios,
            decoder_expansion_ratio=ratios[::-1],
            bottleneck_expansion_ratio=deepest,
            kernel_size=3,
            use_residual_connection=True,
            blocks_down=blocks,
            blocks_bottleneck=deepest_blocks,
            blocks_up=blocks[::-1],
        )
        del self.layers.out_0
        self.head = Pointwise(width, classes)

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``(B, C, X, Y, Z)`` to bottleneck ``(B, 16 width, X/16, Y/16, Z/16)`` and four skips."""
        x, skips = self.layers.stem(image), []
        for stage, down in zip(self.layers.enc_stages, self.layers.down_blocks, strict=True):
            skips.append(stage(x))
            x = down(skips[-1])
        return self.layers.bottleneck(x), skips

    def upsample(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        """Bottleneck and skips to what the head reads, ``(B, width, X, Y, Z)``."""
        x, levels = features, zip(self.layers.up_blocks, self.layers.dec_stages, strict=True)
        for (up, stage), skip in zip(levels, reversed(skips), strict=True):
            x = stage(up(x) + skip)
        return x
