"""DTC: one network, two tasks that must tell the same story.

Luo et al., "Semi-supervised medical image segmentation through dual-task consistency", AAAI 2021.
A V-Net with two heads predicts the segmentation p and signed distance maps z in [-1, 1]:

    T^-1(z) = sigmoid(-k z)                                      a map back to a mask, eq. 5
    L_dtc   = mean over all patches of |T^-1(z) - p|^2           eq. 6, labelled and unlabelled
    L       = L_dice + sdm_weight |z - T(y)|^2 + weight ramp L_dtc

For several classes there is a map per foreground class. Unlike the authors' script, a class that
a patch does not hold has the map 1 (outside everywhere), not 0 (surface everywhere).
"""

import torch
from pydantic import PositiveFloat
from torch import Tensor

from dcamt.losses.consistency import masked_mse
from dcamt.losses.overlap import soft_dice
from dcamt.methods.method import Method
from dcamt.networks.backbone import Network
from dcamt.networks.distance import WithDistance
from dcamt.ops.distance import signed_distances
from dcamt.section import Fraction, Section
from dcamt.types import IGNORE, Batch, Progress, Update


class DTC(Method):
    """Segmentation and distance from one network."""

    class Config(Section):
        sdm_weight: float = 0.3
        """Weight of the distance maps on labelled patches."""
        weight: float = 1.0
        """Weight of the consistency between the two tasks."""
        ramp: Fraction = 1.0
        """Share of the run over which that loss rises to full weight."""
        steepness: PositiveFloat = 1500.0
        """k of the sigmoid that turns a distance map into a mask; large: almost a step."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.network = WithDistance(network())

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        c = self.config
        labeled = len(batch.image_l)
        logits, sdm = self.network(torch.cat([batch.image_l, batch.image_u]))
        annotated = batch.label_l != IGNORE
        target = signed_distances(batch.label_l, logits.shape[1])
        supervised = soft_dice(logits[:labeled], batch.label_l)
        distance = masked_mse(sdm[:labeled], target, annotated)
        mask = torch.sigmoid(-c.steepness * sdm.float())
        probabilities = logits.float().softmax(1)[:, 1:]
        consistency = masked_mse(mask, probabilities, torch.cat([annotated, batch.inside_u]))
        weight = c.weight * at.ramp(c.ramp)
        update(supervised + c.sdm_weight * distance + weight * consistency)
        return {"supervised": supervised, "distance": distance, "consistency": consistency}

    def branches(self, image: Tensor) -> Tensor:
        logits, _ = self.network(image)
        return logits.float().softmax(1).unsqueeze(0)
