"""Masked reconstruction: a backbone learns from scans alone, by filling in what is hidden of them.

He et al., "Masked autoencoders are scalable vision learners", CVPR 2022; for 3D medical networks
with an encoder and a decoder Wald et al., "Revisiting MAE pre-training for 3D medical image
segmentation", CVPR 2025. Of a patch x a random ``mask`` of the blocks is set to 0, the mean of
normalised intensities, and the network is to say what stood there:

    L = mean over hidden voxels of |g(x hidden) - x|^2

g is the backbone with a 1x1x1 convolution in place of its head. Padding is no target. Blocks have
``block`` voxels a side, fewer where a side of the patch is no multiple of that.
"""

from math import gcd
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from dcamt.losses.consistency import masked_mse
from dcamt.methods.method import Method
from dcamt.networks.backbone import Network
from dcamt.networks.convolution import Pointwise
from dcamt.ops.mask import random_blocks
from dcamt.section import Section
from dcamt.types import IGNORE, Batch, Progress, Update


class MaskedReconstruction(Method):
    """Trained as a method is, on patches whose labels it does not look at; it segments nothing."""

    class Config(Section):
        mask: Annotated[float, Field(gt=0, lt=1)] = 0.6
        """Share of the blocks that is hidden."""
        block: PositiveInt = 8
        """Side of a block in voxels."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.network = network()
        self.network.head = nn.Identity()  # whoever starts from these weights draws a head
        self.reconstruction = Pointwise(self.network.width, self.network.channels)

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        image = torch.cat([batch.image_l, batch.image_u])
        inside = torch.cat([batch.label_l != IGNORE, batch.inside_u])
        sides = [block_side(side, self.config.block) for side in image.shape[2:]]
        hidden = random_blocks(inside.shape, sides, self.config.mask, image.device)
        seen = image.masked_fill(hidden.unsqueeze(1), 0.0)
        features = self.network.decode_features(*self.network.encode(seen))
        loss = masked_mse(self.reconstruction(features), image, hidden & inside)
        update(loss)
        return {"reconstruction": loss}


def block_side(side: int, block: int) -> int:
    """The largest divisor of ``block`` and of a patch's ``side`` that leaves two blocks, if any."""
    whole = gcd(side, block)
    return whole // 2 if whole == side and side % 2 == 0 else whole
