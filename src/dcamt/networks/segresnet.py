"""SegResNet: residual blocks with group norm, and a light decoder.

Myronenko, "3D MRI brain tumor segmentation using autoencoder regularization", BrainLes 2018,
without the autoencoder. The layers are MONAI's.
"""

from torch import Tensor, nn

from dcamt.networks.backbone import Backbone
from dcamt.networks.convolution import Pointwise


class SegResNet(Backbone):
    """Three downsamplings, of 1, 2, 2 and 4 blocks between them, and one block a level back up.

    ``width`` doubles at each downsampling; it is a multiple of 8, the number of groups. With 1
    channel, 2 classes and width 32 it has 18,796,002 parameters, with 16 4,700,914.
    """

    usual_width = 32
    width_step = 8
    norm = "group"
    stride = (8, 8, 8)

    def __init__(self, channels: int = 1, classes: int = 2, width: int = 32, dropout: float = 0.0):
        super().__init__(channels, classes, features=8 * width, width=width, dropout=dropout)
        from monai.networks.nets.segresnet import SegResNet as Layers

        self.layers = Layers(3, width, channels, classes)
        *before, _ = self.layers.conv_final
        self.layers.conv_final = nn.Sequential(*before)  # all but the last convolution, the head
        self.head = Pointwise(width, classes)

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``(B, C, X, Y, Z)`` to bottleneck ``(B, 8 width, X/8, Y/8, Z/8)`` and three skips."""
        features, levels = self.layers.encode(image)
        return features, levels[:-1]

    def upsample(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        """Bottleneck and skips to what the head reads, ``(B, width, X, Y, Z)``."""
        return self.layers.decode(features, [features, *reversed(skips)])
