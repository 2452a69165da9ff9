"""A backbone that also predicts signed distance maps."""

from torch import Tensor, nn

from dcamt.networks.backbone import Backbone
from dcamt.networks.convolution import Pointwise


class WithDistance(nn.Module):
    """A backbone with a second 1x1x1 head: one map per foreground class, in [-1, 1] by tanh.

    Li et al., SASSNet, MICCAI 2020; Luo et al., DTC, AAAI 2021.
    """

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.vnet = backbone  # its name in the checkpoints that there are
        self.distance_head = Pointwise(backbone.width, backbone.classes - 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, C, X, Y, Z)`` to logits ``(B, K, X, Y, Z)`` and maps ``(B, K - 1, X, Y, Z)``."""
        x = self.vnet.decode_features(*self.vnet.encode(image))
        return self.vnet.head(x), self.distance_head(x).tanh()
