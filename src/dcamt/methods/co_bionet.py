"""Co-BioNet: two networks that learn from each other where the other's critic is content.

Peiris et al., "Uncertainty-guided dual-views for semi-supervised volumetric medical image
segmentation", Nature Machine Intelligence 2023. Two V-Nets 1 and 2 that start apart, each with a
critic D that tells at every voxel labels (1) from its network's predictions (0):

    M_2   = D_2(p_2) > threshold                                 where network 2 can be trusted
    L_1   = L_sup(1) + weight ramp (L_12 + adversarial L_adv)    and the same for network 2
    L_12  = mean over all voxels of M_2 CE(p_1, p_2)             on unlabelled patches
    L_adv = BCE(D_1(p_1), 1)                                     on all patches
    L_D   = 0.5 (BCE(D_1(y), 1) + BCE(D_1(p_1), 0))              the critic's part of the min-max

No gradient passes through p_2 in L_12. The evaluated output is the mean of both. The threshold is
the one for the left atrium (0.2 for the pancreas), the ramp the published 6,000 of 15,000
iterations, the critics' optimiser AdamW at 1e-4.

Unlike the authors' script, critics are trained (there L_D is detached before it is
back-propagated), M_2 selects voxels (there it multiplies a mean that is already taken), and L_12 is
the KL divergence, which has the gradient of the cross-entropy. L_sup is the protocol's, with weight
1 (0.8 or 1 there); classes are by softmax; the critics' rate stays the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from dcamt.config import TrainConfig
from dcamt.losses.consistency import distillation, masked_mean
from dcamt.losses.overlap import dice_ce, one_hot
from dcamt.methods.method import Method
from dcamt.networks.backbone import Network
from dcamt.networks.critic import Critic
from dcamt.section import Fraction, Section
from dcamt.types import IGNORE, Batch, Progress, Update


class CoBioNet(Method):
    """Two V-Nets of equal rank, and what tells which voxels of each to trust."""

    predicts = ("first", "second")

    class Config(Section):
        weight: float = 1.0
        """Weight of the loss on unlabelled patches."""
        ramp: Fraction = 0.4
        """Share of the run over which that loss rises to full weight."""
        adversarial: float = 0.01
        """Weight of what the critic says, within that loss."""
        threshold: Fraction = 0.3
        """Probability of a label, by the critic, above which a voxel teaches."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.first = network()
        self.second = network()
        maps, width = self.first.classes - 1, self.first.width
        self.critic_1 = Critic(maps, width)
        self.critic_2 = Critic(maps, width)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        return {
            "networks": [*self.first.parameters(), *self.second.parameters()],
            "critics": [*self.critic_1.parameters(), *self.critic_2.parameters()],
        }

    def optimizer(self, part: str, parameters: list[nn.Parameter], train: TrainConfig) -> Optimizer:
        if part == "critics":
            return AdamW(parameters, lr=1e-4)
        return super().optimizer(part, parameters, train)

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        c = self.config
        labeled = len(batch.image_l)
        image = torch.cat([batch.image_l, batch.image_u])
        annotated = batch.label_l != IGNORE
        inside = torch.cat([annotated, batch.inside_u])
        logits_1, logits_2 = self.first(image), self.second(image)
        p_1, p_2 = logits_1.float().softmax(1)[:, 1:], logits_2.float().softmax(1)[:, 1:]
        verdict_1, verdict_2 = self.critic_1(p_1), self.critic_2(p_2)
        supervised_1 = dice_ce(logits_1[:labeled], batch.label_l)
        supervised_2 = dice_ce(logits_2[:labeled], batch.label_l)
        trusted_1 = batch.inside_u & (verdict_1[labeled:].sigmoid() > c.threshold)
        trusted_2 = batch.inside_u & (verdict_2[labeled:].sigmoid() > c.threshold)
        share_1 = masked_mean(trusted_1, batch.inside_u)
        share_2 = masked_mean(trusted_2, batch.inside_u)
        learned_1 = share_2 * distillation(logits_1[labeled:], logits_2[labeled:], trusted_2, 1.0)
        learned_2 = share_1 * distillation(logits_2[labeled:], logits_1[labeled:], trusted_1, 1.0)
        adversarial = verdict_loss(verdict_1, 1.0, inside) + verdict_loss(verdict_2, 1.0, inside)
        mutual = learned_1 + learned_2 + c.adversarial * adversarial
        update(supervised_1 + supervised_2 + c.weight * at.ramp(c.ramp) * mutual, "networks")
        truth = one_hot(batch.label_l, logits_1.shape[1])[:, 1:]
        judgement = torch.zeros_like(adversarial)
        for critic, p in ((self.critic_1, p_1.detach()), (self.critic_2, p_2.detach())):
            real, fake = critic(truth), critic(p)
            judgement = judgement + 0.5 * verdict_loss(real, 1.0, annotated)
            judgement = judgement + 0.5 * verdict_loss(fake, 0.0, inside)
        update(judgement, "critics")
        return {
            "supervised_first": supervised_1,
            "supervised_second": supervised_2,
            "learned_first": learned_1,
            "learned_second": learned_2,
            "adversarial": adversarial,
            "critics": judgement,
            "trusted_first": share_1,
            "trusted_second": share_2,
        }


def verdict_loss(verdict: Tensor, truth: float, inside: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits ``(B, X, Y, Z)`` with ``truth``, where ``inside``."""
    target = torch.full_like(verdict, truth, dtype=torch.float32)
    loss = F.binary_cross_entropy_with_logits(verdict.float(), target, reduction="none")
    return masked_mean(loss, inside)
