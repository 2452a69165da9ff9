"""Pseudo-label: a network trained on its own guesses.

Lee, "Pseudo-label: the simple and efficient semi-supervised learning method for deep neural
networks", ICML workshop 2013, eqs. 14-16, for voxels:

    L = L_sup + weight ramp CE(p_u, argmax p_u)                  no gradient through argmax

Weight and ramp are those of our other peers, where the paper's weight grows linearly to 3.
"""

import torch
from torch import Tensor

from dcamt.losses.overlap import cross_entropy, dice_ce, pseudo_label
from dcamt.methods.method import Method
from dcamt.networks.backbone import Network
from dcamt.section import Fraction, Section
from dcamt.types import Batch, Progress, Update


class PseudoLabel(Method):
    """One V-Net."""

    class Config(Section):
        weight: float = 0.1
        """Weight of the loss on unlabelled patches."""
        ramp: Fraction = 1.0
        """Share of the run over which that loss rises to full weight."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.network = network()

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        labeled = len(batch.image_l)
        logits = self.network(torch.cat([batch.image_l, batch.image_u]))
        supervised = dice_ce(logits[:labeled], batch.label_l)
        guess = pseudo_label(logits[labeled:], batch.inside_u)
        pseudo = cross_entropy(logits[labeled:], guess)
        update(supervised + self.config.weight * at.ramp(self.config.ramp) * pseudo)
        return {"supervised": supervised, "pseudo": pseudo}
