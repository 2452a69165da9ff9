"""Pi-model: one network that must say the same twice.

Laine and Aila, "Temporal ensembling for semi-supervised learning", ICLR 2017, algorithm 1, for
volumes. p and q are two passes over the same patch, each with its own noise and dropout:

    L = L_sup + weight ramp mean |p_u - q_u|^2                   gradients flow through both

Consistency is on the unlabelled patches alone; noise (std 0.1 clipped to +-0.2), weight and ramp
are those of Mean Teacher, which replaces q by a teacher. The network is evaluated without either.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from dcamt.losses.consistency import softmax_mse
from dcamt.losses.overlap import dice_ce
from dcamt.methods.method import Method
from dcamt.networks.backbone import Network
from dcamt.ops.noise import noisy
from dcamt.section import Fraction, Section
from dcamt.types import Batch, Progress, Update


class PiModel(Method):
    """One V-Net with dropout."""

    class Config(Section):
        weight: float = 0.1
        """Weight of the loss on unlabelled patches."""
        ramp: Fraction = 1.0
        """Share of the run over which that loss rises to full weight."""
        dropout: Annotated[float, Field(gt=0, lt=1)] = 0.5
        """Dropout of the network, in place of `network.dropout`."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.network = network(dropout=config.dropout)

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        labeled = len(batch.image_l)
        logits = self.network(torch.cat([batch.image_l, noisy(batch.image_u)]))
        again = self.network(noisy(batch.image_u)).float().softmax(1)
        supervised = dice_ce(logits[:labeled], batch.label_l)
        consistency = softmax_mse(logits[labeled:], again, batch.inside_u)
        update(supervised + self.config.weight * at.ramp(self.config.ramp) * consistency)
        return {"supervised": supervised, "consistency": consistency}
