"""GA: cross pseudo supervision with losses whose gradients suit rare and absent classes.

Qi et al., "Gradient-aware for class-imbalanced semi-supervised medical image segmentation",
ECCV 2024. Two V-Nets that start apart; Y_1, Y_2 the classes they give to unlabelled voxels:

    L_ga(p, y; k) = 0.5 (GACE_k(p, y) + GADice(p, y))            dcamt.losses.gradient_aware
    L = sum of L_ga(p, y; 10 %) over both, on labelled patches
        + weight ramp (L_ga(p_1, Y_2; 100 %) + L_ga(p_2, Y_1; 100 %)), on unlabelled ones

The evaluated output is the mean of both. Here cross supervision is on the unlabelled patches
alone, its weight and ramp are those of our other peers, sums of Dice are over the batch, and the
classes are counted among the voxels that GACE keeps.
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
        """Balance of the classes: 0 is the plain mean, 1 counts every class alike."""

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
        supervised_1 = self._loss(logits_1[:labeled], batch.label_l, c.hardest)
        supervised_2 = self._loss(logits_2[:labeled], batch.label_l, c.hardest)
        guess_1 = pseudo_label(logits_1[labeled:], batch.inside_u)
        guess_2 = pseudo_label(logits_2[labeled:], batch.inside_u)
        cross_1 = self._loss(logits_1[labeled:], guess_2, c.hardest_pseudo)
        cross_2 = self._loss(logits_2[labeled:], guess_1, c.hardest_pseudo)
        weight = c.weight * at.ramp(c.ramp)
        update(supervised_1 + supervised_2 + weight * (cross_1 + cross_2))
        return {
            "supervised_first": supervised_1,
            "supervised_second": supervised_2,
            "cross_first": cross_1,
            "cross_second": cross_2,
        }

    def _loss(self, logits: Tensor, label: Tensor, share: float) -> Tensor:
        entropy = ga_cross_entropy(logits, label, share, self.config.gamma)
        return 0.5 * (entropy + ga_dice(logits, label))
