"""A network that judges every voxel of a segmentation."""

from itertools import pairwise

from torch import Tensor, nn


class Critic(nn.Module):
    """One number per voxel from the probabilities there: does that look like a label?

    Peiris et al., Co-BioNet, Nature Machine Intelligence 2023: 1x1x1 convolutions, here linear
    layers over the channels, to ``width`` times 1, 2 and 4 channels with leaky ReLU, and to one.
    Without the batch norms of the original, whose statistics would mix voxels with padding, and
    labels with predictions.
    """

    def __init__(self, maps: int, width: int):
        super().__init__()
        layers: list[nn.Module] = []
        for channels_in, channels in pairwise([maps, width, 2 * width, 4 * width]):
            layers += [nn.Linear(channels_in, channels), nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(4 * width, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, K - 1, X, Y, Z)``, the foreground classes, to logits ``(B, X, Y, Z)``."""
        return self.layers(maps.movedim(1, -1)).squeeze(-1)
