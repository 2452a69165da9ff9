"""AD-MT: two teachers that follow the student by turns, and a choice where they differ.

Zhao et al., "Alternate diverse teaching for semi-supervised medical image segmentation", ECCV 2024.
A turn lasts 1 to ``turn`` iterations, drawn at random. The teacher on duty normalises by the batch,
the other one by its running statistics. Of the unlabelled patches u, with the entropy H in bits:

    p    = (w_1 p_1 + w_2 p_2) / (w_1 + w_2),  w_i = exp(-H(p_i))    what both teachers say of u
    Y, C = argmax p, max p                                           class and confidence; but where
           Y_1 != Y_2 the student's, if it is another class and the student is the surer
    v    = a strong view of u in the first teacher's turns,
           u with a box of another patch (CutMix) in the second's
    L    = L_sup + weight ramp CE(p_v, Y mixed alike)                mean over C >= threshold

Only the teacher on duty follows the student: its decay is min(1 - 1 / n, decay) in the n-th
iteration of all its turns. The evaluated network is the student. Constants are those for the left
atrium (a turn has up to 14 iterations for the pancreas); the ramp is the published 6,000 of 15,000
iterations.

Unlike the authors' script, turns are drawn once, the same in every run, so that a resumed run has
them, too; a patch is mixed with the one before it, by a box of its own size, and voxels are
exchanged only where both are real; what the student says of u is mixed like what the teachers say;
teachers keep running statistics of their own, where the script averages them with the student's,
and no copy is made of the student in the first 80 iterations. Strong views are the protocol's.
"""

import math
from functools import cache

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.distributions import Beta

from dcamt.losses.consistency import masked_mean
from dcamt.losses.overlap import cross_entropy, dice_ce, pseudo_label
from dcamt.methods.method import Method, follow_, frozen_copy
from dcamt.networks.backbone import Network
from dcamt.ops.mix import cutmix, paste
from dcamt.section import Fraction, Section
from dcamt.types import Batch, Progress, Update


class ADMT(Method):
    """One student, two teachers."""

    predicts = ("student",)

    views = 1

    class Config(Section):
        weight: float = 2.0
        """Weight of the loss on unlabelled patches."""
        ramp: Fraction = 0.4
        """Share of the run over which that loss rises to full weight."""
        threshold: Fraction = 0.8
        """Confidence from which a voxel counts."""
        decay: Fraction = 0.99
        """Share of its old weights that the teacher keeps in an iteration, at most."""
        turn: PositiveInt = 19
        """Longest turn of a teacher, in iterations."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.student = network()
        self.teachers = nn.ModuleList([frozen_copy(self.student), frozen_copy(self.student)])

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        c = self.config
        on_duty, before = turns(c.turn, at.iterations)[at.iteration]
        for number, teacher in enumerate(self.teachers):
            teacher.train(number == on_duty)
        with torch.no_grad():
            p_1, p_2 = (teacher(batch.image_u).float().softmax(1) for teacher in self.teachers)
        if on_duty == 0:
            taken, view = torch.zeros_like(batch.inside_u), batch.strong_u[0]
        else:
            sides = Beta(4.0, 4.0).sample((len(batch.image_u),)).sqrt()
            taken = cutmix(batch.inside_u, sides)
            view = paste(batch.image_u, taken)
        logits = self.student(torch.cat([batch.image_l, batch.image_u, view]))
        logits_l, logits_u, logits_v = logits.split([len(batch.image_l), len(view), len(view)])
        differ = p_1.argmax(1) != p_2.argmax(1)
        p = choose(ensemble(p_1, p_2), logits_u.detach().float().softmax(1), differ)
        certain = batch.inside_u & (p.amax(1) >= c.threshold)
        guess = paste(pseudo_label(p, certain), taken)
        supervised, pseudo = dice_ce(logits_l, batch.label_l), cross_entropy(logits_v, guess)
        update(supervised + c.weight * at.ramp(c.ramp) * pseudo)
        follow_(self.teachers[on_duty], self.student, c.decay, before)
        return {
            "supervised": supervised,
            "pseudo": pseudo,
            "certain": masked_mean(certain, batch.inside_u),
            "differ": masked_mean(differ, batch.inside_u),
        }


def ensemble(first: Tensor, second: Tensor) -> Tensor:
    """Mean of two predictions ``(B, K, X, Y, Z)``, weighted by exp(-H), H the entropy in bits."""
    both = torch.stack([first, second])
    bits = torch.special.entr(both).sum(2, keepdim=True) / math.log(2)
    weight = torch.exp(-bits)
    return (weight * both).sum(0) / weight.sum(0)


def choose(teachers: Tensor, student: Tensor, differ: Tensor) -> Tensor:
    """``teachers`` ``(B, K, X, Y, Z)``, but ``student`` where that is the surer of another class.

    Only where ``differ`` ``(B, X, Y, Z)`` holds.
    """
    (sure_t, class_t), (sure_s, class_s) = teachers.max(1), student.max(1)
    better = differ & (class_s != class_t) & (sure_s > sure_t)
    return torch.where(better.unsqueeze(1), student, teachers)


@cache
def turns(longest: int, iterations: int) -> list[tuple[int, int]]:
    """Who is on duty in each iteration, 0 or 1, and how often that one has been before.

    A turn lasts 1 to ``longest`` iterations, each as likely.
    """
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, longest + 1, (iterations,), generator=random)
    on_duty = torch.arange(iterations).repeat_interleave(lengths)[:iterations] % 2
    result, count = [], [0, 0]
    for number in on_duty.tolist():
        result.append((number, count[number]))
        count[number] += 1
    return result
