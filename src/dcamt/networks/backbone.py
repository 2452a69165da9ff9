"""What a backbone is: an encoder and a decoder that meet at a bottleneck.

Methods ask no more of a network than what stands here, so that each runs on every backbone.
To add one: docs/adding-a-backbone.md.

Shapes: B patches, C channels of the image, K classes, (X, Y, Z) voxels, D features at the
bottleneck, which is (x, y, z) = (X, Y, Z) / stride.
"""

from collections.abc import Callable

from torch import Tensor, nn

Stride = tuple[int, int, int]


class Backbone(nn.Module):
    """Base of every backbone, which builds its layers and a ``head``, and says how to use them.

    channels: C. classes: K. features: D. width: channels of what the head reads. stride: voxels of
    the image along each axis for one voxel of the bottleneck; each side of a patch must be a
    multiple of it. ``dropout`` acts on the bottleneck and on what the head reads.
    """

    head: nn.Module

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        features: int,
        width: int,
        stride: Stride,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.channels, self.classes = channels, classes
        self.features, self.width, self.stride = features, width, stride
        self.dropout = nn.Dropout3d(dropout)

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``(B, C, X, Y, Z)`` to the bottleneck ``(B, D, x, y, z)``, and the skips."""
        raise NotImplementedError

    def upsample(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        """Bottleneck and skips to what the head reads, ``(B, width, X, Y, Z)``."""
        raise NotImplementedError

    def decode_features(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        """The same with dropout, where there is any."""
        return self.dropout(self.upsample(self.dropout(features), skips))

    def decode(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        """Bottleneck and skips to logits ``(B, K, X, Y, Z)``."""
        return self.head(self.decode_features(features, skips))

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, X, Y, Z)`` to logits ``(B, K, X, Y, Z)``."""
        return self.decode(*self.encode(image))


Network = Callable[..., Backbone]
"""Makes a backbone with new weights; takes ``dropout``."""
