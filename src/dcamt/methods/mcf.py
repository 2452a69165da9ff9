"""MCF: two different networks; where they disagree one is wrong, and the better one teaches.

Wang et al., "MCF: Mutual correction framework for semi-supervised medical image segmentation",
CVPR 2023. A is a V-Net, or whatever backbone is configured, B a V-Net on a 3D ResNet-34 encoder:

    D     = voxels of labelled patches with argmax p_A != argmax p_B
    L_A   = L_sup(A) + disagreement mean over D of |p_A - y|^2   and the same for B
    L_c   = |p_worse - sharpen(p_better)|^2 on unlabelled patches, sharpen(p) ~ p^(1 / T)
    L     = L_A + L_B + weight ramp L_c

The better network is the one with the lower Dice loss on this iteration's labelled patches; only
the worse one learns from L_c. The evaluated output is the mean of both.

Unlike the paper, both networks see the same patches rather than a crop each: they are compared
voxel by voxel. L_sup is the protocol's 0.5 (cross-entropy + Dice), and the squared errors are means
over all classes. B is the same whatever A is, for the two are to differ by design, and has as many
channels at full resolution; so a patch must suit a V-Net, too.
"""

import torch
from pydantic import PositiveFloat
from torch import Tensor

from dcamt.config import BackboneConfig
from dcamt.losses.consistency import masked_mse
from dcamt.losses.overlap import cross_entropy, one_hot, soft_dice
from dcamt.methods.method import Method
from dcamt.networks.backbone import Network
from dcamt.networks.resnet import ResNet34
from dcamt.section import Fraction, Section
from dcamt.types import IGNORE, Batch, Progress, Update


class MCF(Method):
    """A V-Net, or another backbone, and a ResNet that correct each other."""

    predicts = ("vnet", "resnet")

    class Config(Section):
        disagreement: float = 0.5
        """Weight of the error where the two networks disagree."""
        weight: float = 0.1
        """Weight of the loss on unlabelled patches."""
        ramp: Fraction = 1.0
        """Share of the run over which that loss rises to full weight."""
        temperature: PositiveFloat = 0.1
        """T of the sharpening; smaller is sharper."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.vnet = network()
        v = self.vnet
        self.resnet = ResNet34(v.channels, v.classes, v.width, v.dropout.p)

    @classmethod
    def backbones(cls, config: Config, network: BackboneConfig) -> tuple[BackboneConfig, ...]:
        return network, BackboneConfig(name="vnet")

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        c = self.config
        labeled = len(batch.image_l)
        image = torch.cat([batch.image_l, batch.image_u])
        logits_a, logits_b = self.vnet(image), self.resnet(image)
        dice_a = soft_dice(logits_a[:labeled], batch.label_l)
        dice_b = soft_dice(logits_b[:labeled], batch.label_l)
        supervised_a = 0.5 * (cross_entropy(logits_a[:labeled], batch.label_l) + dice_a)
        supervised_b = 0.5 * (cross_entropy(logits_b[:labeled], batch.label_l) + dice_b)
        p_a, p_b = logits_a.float().softmax(1), logits_b.float().softmax(1)
        differ = (p_a[:labeled].argmax(1) != p_b[:labeled].argmax(1)) & (batch.label_l != IGNORE)
        truth = one_hot(batch.label_l, p_a.shape[1])
        corrected_a = masked_mse(p_a[:labeled], truth, differ)
        corrected_b = masked_mse(p_b[:labeled], truth, differ)
        a_is_better = dice_a < dice_b
        better = torch.where(a_is_better, logits_a[labeled:], logits_b[labeled:]).detach()
        worse = torch.where(a_is_better, p_b[labeled:], p_a[labeled:])
        sharp = (better.float() / c.temperature).softmax(1)
        consistency = masked_mse(worse, sharp, batch.inside_u)
        update(
            supervised_a
            + supervised_b
            + c.disagreement * (corrected_a + corrected_b)
            + c.weight * at.ramp(c.ramp) * consistency
        )
        return {
            "supervised_vnet": supervised_a,
            "supervised_resnet": supervised_b,
            "disagreement_vnet": corrected_a,
            "disagreement_resnet": corrected_b,
            "consistency": consistency,
            "vnet_is_better": a_is_better.float(),
        }
