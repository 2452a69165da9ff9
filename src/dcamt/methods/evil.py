"""EVIL: a network that knows what it does not know teaches one that segments.

Chen et al., "EVIL: Evidential inference learning for trustworthy semi-supervised medical image
segmentation", ISBI 2023, in 3D. The E-Net gives evidence e = softplus(logits), from which follow a
Dirichlet distribution a = e + 1 and the uncertainty u = K / sum_k a_k; the S-Net is a plain V-Net:

    L_E(a, y) = 0.5 (E[CE] + anneal KL + Dice(a / S, y))         dcamt.losses.evidential
    L_S(p, y) = 0.5 (CE + Dice)
    L = L_E(a_l, y) + L_S(p_l, y)
        + weight ramp (L_S(p_u, argmax a_u where u < threshold) + L_E(a_u, argmax p_u))

``anneal`` is the same ramp. The evaluated network is the S-Net. Weight and ramp are those of our
other peers, where the authors schedule each network apart.
"""

import torch
from torch import Tensor

from dcamt.losses.consistency import masked_mean
from dcamt.losses.evidential import (
    concentration,
    evidential_cross_entropy,
    misleading_evidence,
    uncertainty,
)
from dcamt.losses.overlap import dice_ce, pseudo_label, soft_dice
from dcamt.methods.method import Method
from dcamt.networks.backbone import Network
from dcamt.section import Fraction, Section
from dcamt.types import Batch, Progress, Update


class EVIL(Method):
    """An evidential network and a segmentation network."""

    predicts = ("s_net",)

    class Config(Section):
        weight: float = 0.1
        """Weight of the loss on unlabelled patches."""
        ramp: Fraction = 1.0
        """Share of the run over which that loss rises to full weight."""
        threshold: Fraction = 0.2
        """Uncertainty above which a voxel teaches nothing."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.e_net = network()
        self.s_net = network()

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        c = self.config
        labeled = len(batch.image_l)
        image = torch.cat([batch.image_l, batch.image_u])
        a = concentration(self.e_net(image))
        logits = self.s_net(image)
        ramp = at.ramp(c.ramp)
        supervised_e = evidence_loss(a[:labeled], batch.label_l, ramp)
        supervised_s = dice_ce(logits[:labeled], batch.label_l)
        certain = batch.inside_u & (uncertainty(a[labeled:].detach()) < c.threshold)
        to_s = dice_ce(logits[labeled:], pseudo_label(a[labeled:], certain))
        guess = pseudo_label(logits[labeled:], batch.inside_u)
        to_e = evidence_loss(a[labeled:], guess, ramp)
        update(supervised_e + supervised_s + c.weight * ramp * (to_s + to_e))
        return {
            "supervised_e": supervised_e,
            "supervised_s": supervised_s,
            "to_s": to_s,
            "to_e": to_e,
            "certain": masked_mean(certain, batch.inside_u),
        }


def evidence_loss(a: Tensor, label: Tensor, anneal: float) -> Tensor:
    """L_E of concentrations ``(B, K, X, Y, Z)``; softmax(ln a) = a / S."""
    entropy, misled = evidential_cross_entropy(a, label), misleading_evidence(a, label)
    return 0.5 * (entropy + anneal * misled + soft_dice(a.log(), label))
