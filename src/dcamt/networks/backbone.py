"""What a backbone is: an encoder and a decoder that meet at a bottleneck.

Methods ask no more of a network than what stands here, so that each runs on every backbone.
To add one: docs/adding-a-backbone.md.

Shapes: B patches, C channels of the image, K classes, (X, Y, Z) voxels, D features at the
bottleneck, which is (x, y, z) = (X, Y, Z) / stride.
"""

from collections.abc import Callable, Iterable
from math import lcm
from typing import ClassVar, Literal

from torch import Tensor, nn

Stride = tuple[int, int, int]
Patch = tuple[int, int, int]
Spacing = tuple[float, float, float]


class Backbone(nn.Module):
    """Base of every backbone, which builds its layers and a ``head``, and says how to use them.

    channels: C. classes: K. features: D. width: channels of what the head reads. stride: voxels of
    the image along each axis for one voxel of the bottleneck; each side of a patch must be a
    multiple of it. ``dropout`` acts on the bottleneck and on what the head reads.
    """

    usual_width: ClassVar[int]
    """The published one."""
    width_step: ClassVar[int] = 1
    """Widths are multiples of it."""
    sizes: ClassVar[tuple[str, ...]] = ()
    """Names of the sizes that there are, the usual one first; the class then takes ``size``."""
    adapts: ClassVar[bool] = False
    """Whether its layers depend on patch and spacing, which the class then takes, too."""
    norm: ClassVar[Literal["batch", "instance", "group"]] = "instance"
    """Over what features are normalised: a channel of the batch, a channel of a patch, or a group.

    A group is several channels of a patch. One voxel of one channel has no variance; a group has.
    """

    head: nn.Module
    stride: Stride

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        features: int,
        width: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.channels, self.classes = channels, classes
        self.features, self.width = features, width
        self.dropout = nn.Dropout3d(dropout)

    @classmethod
    def stride_for(cls, patch: Patch, spacing: Spacing) -> Stride:
        """Voxels of the image for one of the bottleneck, in patches of about ``patch`` voxels.

        ``spacing``: mm. Each is a power of 2. A smaller side never has a larger stride.
        """
        return cls.stride

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

    def fold(self) -> None:
        """Join layers, where that makes predicting faster and nothing is trained any more.

        Called in evaluation mode, after batch norm was folded; the logits must stay the same.
        """

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, X, Y, Z)`` to logits ``(B, K, X, Y, Z)``."""
        return self.decode(*self.encode(image))


def common_stride(strides: Iterable[Stride]) -> Stride:
    """The smallest stride that is a multiple of each of them, axis by axis."""
    x, y, z = (lcm(*axis) for axis in zip(*strides, strict=True))
    return x, y, z


Network = Callable[..., Backbone]
"""Makes a backbone with new weights, by default the configured one.

Takes ``dropout`` to replace the configured one, and ``name``, ``width`` and ``size`` together for
another backbone.
"""
