"""CPS: two networks that start apart, each trained on what the other says of unlabelled scans.

Chen et al., "Semi-supervised semantic segmentation with cross pseudo supervision", CVPR 2021:

    Y_1 = argmax p_1,  Y_2 = argmax p_2                          no gradient passes through them
    L   = L_sup(1) + L_sup(2) + weight ramp (CE(p_1, Y_2) + CE(p_2, Y_1))

Unlike the paper, cross supervision is on the unlabelled patches alone (the labelled ones have a
better target) and its weight is 0.1 with a sigmoid ramp over the whole run, as is usual for
volumes. The evaluated network is the first.
"""

import torch
from torch import Tensor

from dcamt.losses.overlap import cross_entropy, dice_ce, pseudo_label
from dcamt.methods.method import Method
from dcamt.networks.backbone import Network
from dcamt.section import Fraction, Section
from dcamt.types import Batch, Progress, Update


class CPS(Method):
    """Two V-Nets of equal rank."""

    predicts = ("first",)

    class Config(Section):
        weight: float = 0.1
        """Weight of the loss on unlabelled patches."""
        ramp: Fraction = 1.0
        """Share of the run over which that loss rises to full weight."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.first = network()
        self.second = network()

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        labeled = len(batch.image_l)
        image = torch.cat([batch.image_l, batch.image_u])
        logits_1, logits_2 = self.first(image), self.second(image)
        supervised_1 = dice_ce(logits_1[:labeled], batch.label_l)
        supervised_2 = dice_ce(logits_2[:labeled], batch.label_l)
        guess_1 = pseudo_label(logits_1[labeled:], batch.inside_u)
        guess_2 = pseudo_label(logits_2[labeled:], batch.inside_u)
        cross_1 = cross_entropy(logits_1[labeled:], guess_2)
        cross_2 = cross_entropy(logits_2[labeled:], guess_1)
        weight = self.config.weight * at.ramp(self.config.ramp)
        update(supervised_1 + supervised_2 + weight * (cross_1 + cross_2))
        return {
            "supervised_first": supervised_1,
            "supervised_second": supervised_2,
            "cross_first": cross_1,
            "cross_second": cross_2,
        }
