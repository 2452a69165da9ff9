"""UA-MT: Mean Teacher where the teacher is sure.

Yu et al., "Uncertainty-aware self-ensembling model for semi-supervised 3D left atrium
segmentation", MICCAI 2019:

    mu_c = 1/T sum_t p_t^c,  u = -sum_c mu_c ln mu_c             T noisy teacher passes, dropout on
    H    = (0.75 + 0.25 ramp(t / t_max)) ln K                    the entropy that still counts
    L_c  = mean over voxels with u < H of |p_student - p_teacher|^2
    L    = L_sup + weight ramp L_c

The teacher follows the student as in Mean Teacher. Both train with dropout, which the evaluated
network, the student, drops. The paper's ln 2 is ln K here, for any number of classes.
"""

import math
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from dcamt.losses.consistency import masked_mean, softmax_mse
from dcamt.losses.overlap import dice_ce
from dcamt.methods.method import Method, follow_, frozen_copy
from dcamt.networks.backbone import Network
from dcamt.ops.noise import noisy
from dcamt.section import Fraction, Section
from dcamt.types import Batch, Progress, Update


class UAMT(Method):
    """One student trained by gradients, one teacher that also says how sure it is."""

    predicts = ("student",)

    class Config(Section):
        weight: float = 0.1
        """Weight of the loss on unlabelled patches."""
        ramp: Fraction = 1.0
        """Share of the run over which that loss rises to full weight."""
        decay: Fraction = 0.99
        """Share of its old weights that the teacher keeps in an iteration, at most."""
        passes: PositiveInt = 8
        """T: passes of the teacher from which its uncertainty is measured."""
        dropout: Annotated[float, Field(gt=0, lt=1)] = 0.5
        """Dropout of the network, in place of `network.dropout`."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.student = network(dropout=config.dropout)
        self.teacher = frozen_copy(self.student)

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        c = self.config
        labeled = len(batch.image_l)
        logits = self.student(torch.cat([batch.image_l, batch.image_u]))
        supervised = dice_ce(logits[:labeled], batch.label_l)
        target = self._teach(batch.image_u)
        mean = torch.stack([self._teach(batch.image_u) for _ in range(c.passes)]).mean(0)
        threshold = (0.75 + 0.25 * at.ramp(1.0)) * math.log(target.shape[1])
        certain = batch.inside_u & (entropy(mean) < threshold)
        consistency = softmax_mse(logits[labeled:], target, certain)
        update(supervised + c.weight * at.ramp(c.ramp) * consistency)
        follow_(self.teacher, self.student, c.decay, at.iteration)
        share = masked_mean(certain, batch.inside_u)
        return {"supervised": supervised, "consistency": consistency, "certain": share}

    @torch.no_grad()
    def _teach(self, image: Tensor) -> Tensor:
        """The teacher's probabilities of ``image`` plus noise, std 0.1 clipped to +-0.2."""
        return self.teacher(noisy(image)).float().softmax(1)


def entropy(probabilities: Tensor) -> Tensor:
    """``-sum_k p ln p`` of ``(B, K, X, Y, Z)`` in nats."""
    return -torch.special.xlogy(probabilities, probabilities).sum(1)
