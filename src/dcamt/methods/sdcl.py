"""SDCL: copy-paste for two different students, with two corrections where they disagree.

Song and Wang, "SDCL: Students discrepancy-informed correction learning for semi-supervised medical
image segmentation", MICCAI 2024. Patches are mixed and labelled as in BCP (bcp.py). A is a V-Net,
or whatever backbone is configured, B a V-Net on a 3D ResNet-34 encoder. w is 1 on voxels of
labelled patches, ``weight`` on those of unlabelled ones, and Y the label of either:

    D     = voxels with argmax p_A != argmax p_B
    W_A   = voxels of D with argmax p_A != Y
    L_mse = mean over D of w |p_A - Y|^2                         review what is right
    L_kl  = mean over W_A of w KL(uniform || p_A)                give up what is wrong
    L_A   = L_BCP(A) + mse L_mse + kl L_kl                       and the same for B
    L     = L_A + L_B

The teacher that labels follows A alone, as in BCP; the first ``pretrain`` of the run mixes labelled
patches among themselves, for both, and corrects nothing. The evaluated output is the mean of A and
B. Both learn by Adam at a rate that never falls. Weights are those for the left atrium (0.3 and 0.1
for the pancreas).

Unlike the authors' script, networks are the protocol's, with batch norm and without dropout, and
means are over both mixed volumes at once, where the script adds one for each. B is the same
whatever A is, and has as many channels at full resolution; so a patch must suit a V-Net, too.
What bcp.py does otherwise than its paper holds here, too.
"""

import math

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from dcamt.config import BackboneConfig, TrainConfig
from dcamt.losses.consistency import masked_mean
from dcamt.losses.overlap import dice_ce, one_hot
from dcamt.methods.method import Method, ema_, frozen_copy
from dcamt.networks.backbone import Network
from dcamt.networks.resnet import ResNet34
from dcamt.ops.mix import mixed_both_ways
from dcamt.section import Fraction, Section
from dcamt.types import IGNORE, Batch, Progress, Update


class SDCL(Method):
    """Two students, a V-Net or another backbone and a ResNet, and the teacher of both."""

    predicts = ("vnet", "resnet")

    class Config(Section):
        mse: float = 0.5
        """Weight of the squared error where the students disagree."""
        kl: float = 0.05
        """Weight of the step towards no opinion where a student is wrong."""
        paste: Fraction = 2 / 3
        """Share of each side of the patch that the pasted box takes."""
        weight: float = 0.5
        """Weight of voxels whose label comes from the teacher."""
        decay: Fraction = 0.99
        """Share of its old weights that the teacher keeps in an iteration, at most."""
        pretrain: Fraction = 2 / 17
        """Share of the run that mixes labelled patches alone."""
        learning_rate: PositiveFloat = 1e-3
        """Learning rate of Adam."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.vnet = network()
        v = self.vnet
        self.resnet = ResNet34(v.channels, v.classes, v.width, v.dropout.p)
        self.teacher = frozen_copy(self.vnet)

    @classmethod
    def backbones(cls, config: Config, network: BackboneConfig) -> tuple[BackboneConfig, ...]:
        return network, BackboneConfig(name="vnet")

    def optimizer(self, part: str, parameters: list[nn.Parameter], train: TrainConfig) -> Optimizer:
        return Adam(parameters, lr=self.config.learning_rate)

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        c = self.config
        pretraining = at.iteration < c.pretrain * at.iterations
        image, known, guessed = mixed_both_ways(batch, self.teacher, c.paste, pretraining)
        said = {"vnet": self.vnet(image), "resnet": self.resnet(image)}
        label = torch.where(known == IGNORE, guessed, known)
        weight = torch.where(known == IGNORE, c.weight, 1.0)
        differ = (label != IGNORE) & (said["vnet"].argmax(1) != said["resnet"].argmax(1))
        terms = {"differ": masked_mean(differ, label != IGNORE)}
        if pretraining:
            differ = torch.zeros_like(differ)
        loss = torch.zeros_like(terms["differ"])
        for name, logits in said.items():
            supervised, pseudo = dice_ce(logits, known), dice_ce(logits, guessed)
            mse, kl = corrections(logits, label, weight, differ)
            loss = loss + supervised + c.weight * pseudo + c.mse * mse + c.kl * kl
            terms |= {f"supervised_{name}": supervised, f"pseudo_{name}": pseudo}
            terms |= {f"mse_{name}": mse, f"kl_{name}": kl}
        update(loss)
        ema_(self.teacher, self.vnet, 0.0 if pretraining else c.decay)
        return terms


def corrections(
    logits: Tensor, label: Tensor, weight: Tensor, differ: Tensor
) -> tuple[Tensor, Tensor]:
    """L_mse and L_kl of one student's ``logits`` ``(B, K, X, Y, Z)``; D is ``differ``.

    ``label``, ``weight`` and ``differ``: ``(B, X, Y, Z)``.
    """
    log_p = logits.float().log_softmax(1)
    error = (log_p.exp() - one_hot(label, logits.shape[1])).square().mean(1)
    wrong = differ & (logits.argmax(1) != label)
    from_uniform = -log_p.mean(1) - math.log(logits.shape[1])
    return masked_mean(weight * error, differ), masked_mean(weight * from_uniform, wrong)
