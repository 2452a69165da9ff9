"""GA: cross pseudo supervision with losses whose gradients suit rare and absent classes.

Qi et al., "Gradient-aware for class-imbalanced semi-supervised medical image segmentation",
ECCV 2024. Two V-Nets that start apart; Y_1, Y_2 the classes they give to unlabelled voxels:

    L_sup(p, y) = GACE_10(p, y) + GADice(p, y)                   dcamt.losses.gradient_aware
    L = 0.5 (L_sup(p_1, y) + L_sup(p_2, y))                      on labelled patches
        + 0.5 weight ramp (GACE_100(p_1, Y_2) + GACE_100(p_2, Y_1))    on unlabelled ones

The number of GACE is the share of the voxels that count, in per cent. The evaluated output is the
mean of both. Unlike the authors' script, cross supervision is on the unlabelled patches alone, and
all is halved, as the supervised loss of every method here is.
"""

import torch
from torch import Tensor

from dcamt.losses.gradient_aware import ga_cross_entropy, ga_dice
from dcamt.losses.overlap import pseudo_label
from dcamt.methods.method import Method
from dcamt.networks.backbone import Network
from dcamt.section import Fraction, Section
from dcamt.types import Batch, Progress, Update


class GA(Method):
    """Two V-Nets of equal rank."""

    predicts = ("first", "second")

    class Config(Section):
        weight: float = 0.1
        """Weight of the loss on unlabelled patches."""
        ramp: Fraction = 1.0
        """Share of the run over which that loss rises to full weight."""
        hardest: Fraction = 0.1
        """Share of the labelled voxels that count: the hardest ones."""
        hardest_pseudo: Fraction = 1.0
        """The same share among voxels labelled by the other network."""
        gamma: Fraction = 0.5
        """Balance of the classes: 1 is the plain mean, 0 counts every class alike."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.first = network()
        self.second = network()

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        c = self.config
        labeled = len(batch.image_l)
        image = torch.cat([batch.image_l, batch.image_u])
        logits_1, logits_2 = self.first(image), self.second(image)
        supervised_1 = self._supervised(logits_1[:labeled], batch.label_l)
        supervised_2 = self._supervised(logits_2[:labeled], batch.label_l)
        guess_1 = pseudo_label(logits_1[labeled:], batch.inside_u)
        guess_2 = pseudo_label(logits_2[labeled:], batch.inside_u)
        cross_1 = 0.5 * ga_cross_entropy(logits_1[labeled:], guess_2, c.hardest_pseudo, c.gamma)
        cross_2 = 0.5 * ga_cross_entropy(logits_2[labeled:], guess_1, c.hardest_pseudo, c.gamma)
        weight = c.weight * at.ramp(c.ramp)
        update(supervised_1 + supervised_2 + weight * (cross_1 + cross_2))
        return {
            "supervised_first": supervised_1,
            "supervised_second": supervised_2,
            "cross_first": cross_1,
            "cross_second": cross_2,
        }

    def _supervised(self, logits: Tensor, label: Tensor) -> Tensor:
        c = self.config
        entropy = ga_cross_entropy(logits, label, c.hardest, c.gamma)
        return 0.5 * (entropy + ga_dice(logits, label))
