"""Dual Teacher: two teachers that take turns, so that neither grows too like the student.

Na et al., "Switching temporary teachers for semi-supervised semantic segmentation", NeurIPS 2023.
The run is cut into epochs; teacher 1 works in the even ones, teacher 2 in the odd ones. Of the
unlabelled patches u, a strong view s has another intensity, and m is s mixed with another patch's:

    Y      = argmax p_u,  C = max p_u >= threshold               by the teacher on duty
    L_mix  = share of C x CE(p_m, Y mixed alike)                 a box in even epochs (CutMix),
                                                                 half of the classes in odd ones
    L_sub  = mean over all voxels of C CE(p_s, Y)                p_s of a sub-network of the student
    L      = L_sup + weight L_mix + implicit L_sub

Only the teacher on duty follows the student: its decay is min(1 - 1 / t, decay), t counting the
iterations of its epoch, as in the authors' script, so that it starts each turn from the student.
Sub-networks, drawn anew for every patch, make the student an implicit ensemble; teachers are
whole. The evaluated network is the student.

An epoch is a share of the run, by default one of the authors' 200. Unlike theirs: not every
backbone has residual blocks to drop, so that a sub-network is one of dropout, at the same rate; the
strong view changes contrast and brightness alone (no hue, grey, blur or flip); one box for all
patches, of a volume drawn as their area; patches exchange voxels only where both are real; all that
the student sees passes in one batch; and the share of C is over the batch in both kinds of epochs.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Beta

from dcamt.losses.consistency import masked_mean
from dcamt.losses.overlap import cross_entropy, dice_ce, pseudo_label
from dcamt.methods.method import Method, follow_, frozen_copy
from dcamt.networks.backbone import Network
from dcamt.ops.mix import both_inside, paste, random_box, random_classes
from dcamt.ops.noise import jittered
from dcamt.section import Fraction, Section
from dcamt.types import IGNORE, Batch, Progress, Update


class DualTeacher(Method):
    """One student with dropout, two teachers without."""

    predicts = ("student",)

    class Config(Section):
        weight: float = 1.0
        """Weight of the loss on mixed patches."""
        implicit: float = 0.2
        """Weight of the loss of the sub-networks."""
        threshold: Fraction = 0.95
        """Confidence from which a voxel counts."""
        decay: Fraction = 0.99
        """Share of its old weights that the teacher keeps in an iteration, at most."""
        epoch: Annotated[float, Field(gt=0, le=1)] = 1 / 200
        """Length of a teacher's turn, as a share of the run."""
        intensity: Fraction = 0.5
        """Largest relative change of contrast, and largest shift in standard deviations."""
        dropout: Annotated[float, Field(gt=0, lt=1)] = 0.1
        """Dropout of the network, in place of `network.dropout`."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.student = network(dropout=config.dropout)
        teachers = [frozen_copy(self.student), frozen_copy(self.student)]
        for teacher in teachers:
            teacher.dropout.p = 0.0
        self.teachers = nn.ModuleList(teachers)

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        c = self.config
        epoch, since = divmod(at.iteration, max(1, round(c.epoch * at.iterations)))
        teacher = self.teachers[epoch % 2]
        with torch.no_grad():
            p_u = teacher(batch.image_u).float().softmax(1)
        guess = pseudo_label(p_u, batch.inside_u)
        certain = batch.inside_u & (p_u.amax(1) >= c.threshold)
        if epoch % 2 == 0:
            # The volume of the box is as likely to be small as large, a half on average.
            side = float(Beta(4.0, 4.0).sample()) ** (1 / 3)
            taken = random_box(guess.shape[1:], side, guess.device)
        else:
            taken = random_classes(guess, p_u.shape[1]).roll(1, 0)
        strong = jittered(batch.image_u, c.intensity)
        taken = taken & both_inside(batch.inside_u)
        mixed, label = paste(strong, taken), paste(guess, taken)
        logits = self.student(torch.cat([batch.image_l, mixed, strong]))
        sizes = [len(batch.image_l), len(mixed), len(strong)]
        logits_l, logits_m, logits_s = logits.split(sizes)
        share = masked_mean(certain, batch.inside_u)
        supervised = dice_ce(logits_l, batch.label_l)
        pseudo = share * cross_entropy(logits_m, label)
        implicit = share * cross_entropy(logits_s, guess.masked_fill(~certain, IGNORE))
        update(supervised + c.weight * pseudo + c.implicit * implicit)
        follow_(teacher, self.student, c.decay, since)  # each turn averages anew
        return {
            "supervised": supervised,
            "pseudo": pseudo,
            "implicit": implicit,
            "certain": share,
        }
