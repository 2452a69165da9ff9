"""Distillation: one light network learns what the networks of another run say of every scan.

Hinton et al., "Distilling the knowledge in a neural network", 2015. A batch holds patches u of all
training scans, labelled or not, whose labels are not looked at, and labelled patches l; v is a
strong view of u. With the teacher's probabilities p, their mean over its networks, and the
learner's q:

    L_taught = 0.5 (tau^2 KL(p_u || q) + 1 - Dice(p_u, q))    over u and v; tau is of the KL alone
    L        = L_taught + supervised L_sup(l)

By default supervised is 0: what the labels say, the teacher has learnt (docs/distilling.md). The
teacher sees u as it is, computes in float32 as `dcamt predict` does, and gets no gradient. It is no
part of the method's state: weights that are saved or exported are the learner's alone. The learner
learns by AdamW, whose rate falls as the protocol's does.
"""

from collections.abc import Callable

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.optim import Optimizer

from dcamt.config import TrainConfig
from dcamt.losses.consistency import distillation, soft_dice_between
from dcamt.losses.overlap import dice_ce
from dcamt.methods.method import Method, falling_adamw
from dcamt.networks.backbone import Network
from dcamt.section import Section
from dcamt.types import Batch, Progress, Update

_LEAST = 1e-6
"""Probability below which the teacher's are all alike; a logarithm is taken of them."""


class Distilled(Method):
    """Trained as a method is, once it has a ``teacher``."""

    views = 1
    teacher: Callable[[Tensor], Tensor] | None = None
    """``(B, C, X, Y, Z)`` to probabilities ``(B, K, X, Y, Z)``, both float32."""

    class Config(Section):
        """``temperature``: tau. ``supervised``: weight of the labels; 0 leaves their patches out.

        ``learning_rate``: of AdamW, at the start.
        """

        temperature: PositiveFloat = 1.0
        supervised: float = 0.0
        learning_rate: PositiveFloat = 2e-3

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.network = network()

    def optimizer(self, part: str, parameters: list[nn.Parameter], train: TrainConfig) -> Optimizer:
        return falling_adamw(parameters, self.config.learning_rate, train)

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        assert self.teacher is not None
        c = self.config
        with torch.no_grad(), torch.autocast(batch.image_u.device.type, enabled=False):
            said = self.teacher(batch.image_u)
        said, inside = torch.cat([said, said]), torch.cat([batch.inside_u, batch.inside_u])
        patches = [batch.image_u, batch.strong_u[0], *([batch.image_l] if c.supervised else [])]
        logits = self.network(torch.cat(patches))
        own, labeled = logits[: len(said)], logits[len(said) :]
        divergence = distillation(own, said.clamp(min=_LEAST).log(), inside, c.temperature)
        taught = 0.5 * (divergence + soft_dice_between(own, said, inside))
        if not c.supervised:
            update(taught)
            return {"taught": taught}
        supervised = dice_ce(labeled, batch.label_l)
        update(c.supervised * supervised + taught)
        return {"supervised": supervised, "taught": taught}
