"""SASSNet: distance maps of unlabelled scans must look like those of labelled ones.

Li et al., "Shape-aware semi-supervised 3D semantic segmentation for medical images", MICCAI 2020.
A V-Net with two heads predicts the segmentation and signed distance maps z in [-1, 1]; a
discriminator D tells from (z, image) whether the patch was labelled (1) or not (0):

    L_seg = L_dice + sdm_weight |z_l - T(y)|^2                   eqs. 1-2
    L_adv = BCE(D(z_u, x_u), 1)                                  the network's part of eq. 3
    L     = L_seg + weight ramp L_adv
    L_D   = BCE(D(z_l, x_l), 1) and BCE(D(z_u, x_u), 0)          the discriminator's part

Unlike the authors' script, L_D is one mean over labelled and unlabelled patches and judges the
maps of the same forward pass rather than of a second one. Image and maps are 0 in the padding, and
in labelled patches where no label is known. A class that a patch does not hold has the map 1
(outside everywhere), not 0 (surface everywhere).
D has one logit, averages over the patch whatever its size, and is four times as wide as the V-Net:
64 channels, as published, for the usual 16.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from dcamt.config import TrainConfig
from dcamt.losses.consistency import masked_mse
from dcamt.losses.overlap import soft_dice
from dcamt.methods.method import Method
from dcamt.networks.backbone import Network
from dcamt.networks.discriminator import Discriminator
from dcamt.networks.distance import WithDistance
from dcamt.ops.distance import signed_distances
from dcamt.section import Fraction, Section
from dcamt.types import IGNORE, Batch, Progress, Update


class SASSNet(Method):
    """Segmentation and distance from one network, and what judges the distance."""

    least_side = 16  # of the discriminator

    class Config(Section):
        sdm_weight: float = 0.3
        """Weight of the distance maps on labelled patches."""
        weight: float = 0.01
        """Weight of what the discriminator says."""
        ramp: Fraction = 1.0
        """Share of the run over which that loss rises to full weight."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        backbone = network()
        self.network = WithDistance(backbone)
        self.discriminator = Discriminator(
            backbone.channels, backbone.classes - 1, 4 * backbone.width
        )

    def parts(self) -> dict[str, list[nn.Parameter]]:
        return {
            "network": list(self.network.parameters()),
            "discriminator": list(self.discriminator.parameters()),
        }

    def optimizer(self, part: str, parameters: list[nn.Parameter], train: TrainConfig) -> Optimizer:
        if part == "discriminator":
            return Adam(parameters, lr=1e-4, betas=(0.9, 0.99))
        return super().optimizer(part, parameters, train)

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        c = self.config
        labeled = len(batch.image_l)
        image = torch.cat([batch.image_l, batch.image_u])
        annotated = batch.label_l != IGNORE
        logits, sdm = self.network(image)
        target = signed_distances(batch.label_l, logits.shape[1])
        supervised = soft_dice(logits[:labeled], batch.label_l)
        distance = masked_mse(sdm[:labeled], target, annotated)
        real = torch.cat([annotated, batch.inside_u]).unsqueeze(1)
        image, sdm = image * real, sdm * real
        self.discriminator.eval()  # without dropout for the network's part
        fooled = self.discriminator(sdm[labeled:], image[labeled:]).float()
        adversarial = F.binary_cross_entropy_with_logits(fooled, torch.ones_like(fooled))
        weight = c.weight * at.ramp(c.ramp)
        update(supervised + c.sdm_weight * distance + weight * adversarial, "network")
        self.discriminator.train()
        judged = self.discriminator(sdm.detach(), image).float()
        truth = (torch.arange(len(judged), device=judged.device) < labeled).float()
        judgement = F.binary_cross_entropy_with_logits(judged, truth)
        update(judgement, "discriminator")
        return {
            "supervised": supervised,
            "distance": distance,
            "adversarial": adversarial,
            "discriminator": judgement,
        }

    def branches(self, image: Tensor) -> Tensor:
        logits, _ = self.network(image)
        return logits.float().softmax(1).unsqueeze(0)
