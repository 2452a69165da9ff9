"""Mean Teacher: the student must agree with a moving average of itself on unlabelled scans.

Tarvainen and Valpola, NeurIPS 2017, as Yu et al. (UA-MT, MICCAI 2019) use it for volumes. The
teacher sees the patch plus noise, std 0.1 clipped to +-0.2; the mean squared error between the
softmax outputs is weighted 0.1 with a sigmoid ramp over the whole run. The evaluated network is
the student.
"""

import torch
from torch import Tensor

from dcamt.losses.consistency import softmax_mse
from dcamt.losses.overlap import dice_ce
from dcamt.methods.method import Method, follow_, frozen_copy
from dcamt.networks.backbone import Network
from dcamt.ops.noise import noisy
from dcamt.section import Fraction, Section
from dcamt.types import Batch, Progress, Update


class MeanTeacher(Method):
    """One student trained by gradients, one teacher that follows it."""

    predicts = ("student",)

    class Config(Section):
        weight: float = 0.1
        """Weight of the loss on unlabelled patches."""
        ramp: Fraction = 1.0
        """Share of the run over which that loss rises to full weight."""
        decay: Fraction = 0.99
        """Share of its old weights that the teacher keeps in an iteration, at most."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.student = network()
        self.teacher = frozen_copy(self.student)

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        labeled = len(batch.image_l)
        logits = self.student(torch.cat([batch.image_l, batch.image_u]))
        supervised = dice_ce(logits[:labeled], batch.label_l)
        with torch.no_grad():
            target = self.teacher(noisy(batch.image_u)).float().softmax(1)
        consistency = softmax_mse(logits[labeled:], target, batch.inside_u)
        update(supervised + self.config.weight * at.ramp(self.config.ramp) * consistency)
        follow_(self.teacher, self.student, self.config.decay, at.iteration)
        return {"supervised": supervised, "consistency": consistency}
