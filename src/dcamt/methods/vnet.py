"""A network trained on the labelled cases alone: the bar every semi-supervised method must clear.

By default the V-Net of Milletari et al., 3DV 2016, in the form of dcamt.networks.vnet, after which
the method is named. With all labels it is the ceiling.
"""

from torch import Tensor

from dcamt.losses.overlap import dice_ce
from dcamt.methods.method import Method
from dcamt.networks.backbone import Network
from dcamt.section import Section
from dcamt.types import Batch, Progress, Update


class Supervised(Method):
    """0.5 (cross-entropy + Dice) on the labelled half; the unlabelled half is not looked at."""

    def __init__(self, config: Section, network: Network):
        super().__init__(config, network)
        self.network = network()

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        loss = dice_ce(self.network(batch.image_l), batch.label_l)
        update(loss)
        return {"supervised": loss}
