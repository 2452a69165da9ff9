"""DualFete: two teachers hear from their student whether what they taught it was right.

Yi et al., "DualFete: Revisiting teacher-student interactions from a feedback perspective for
semi-supervised medical image segmentation", AAAI 2026. Teachers 1 and 2 and the student S start
apart and are all trained by gradients. Of the unlabelled patches u there is a strong view s_i for
each teacher, and m_i is s_i with a box of another patch in half of the cases (CutMix):

    Y_i, C_i = argmax p_i(u), max p_i(u)
    Y        = Y_1 where C_1 > C_2, else Y_2
    L_S      = L_sup(p_S(u), Y)                                      all that the student learns
    A, D     = voxels with Y_1 = Y_2, and those with Y_1 != Y_2
    d_A      = CE(p_S(l), y) - CE(p_S'(l), y)                        S' = S after a step on A alone
    L_fed(i) = d_A CE(p_i(s_i), own class) over A where i is the less confident
             + d_D CE(p_i(s_i), own class) over D where i is the more confident
    L_i      = L_sup(p_i(l), y) + L_fed(i)
             + weight ramp L_sup(p_i(m_i), Y_j mixed alike where C_j >= threshold), j the other one

d_D is the same for a step on D. A step that helped on labelled patches (d > 0) makes a teacher the
surer of what it said there, one that did harm the less sure. It goes by ``trial`` along the
gradient of L_S over A or D, scaled to length 1 in each tensor of weights, and is then forgotten.
The evaluated network is the student. ``trial`` is the published 5 x 0.01, the ramp the published
3,000 of 15,000 iterations, and L_sup the protocol's.

Unlike the authors' script, trials leave no trace in the student's batch statistics, either, which
are of unlabelled patches alone; all that a teacher sees passes in one batch; patches have a box
each and exchange voxels only where both are real. Strong views are the protocol's.
"""

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.distributions import Beta
from torch.func import functional_call

from dcamt.losses.consistency import masked_mean
from dcamt.losses.overlap import cross_entropy, dice_ce, pseudo_label
from dcamt.methods.method import Method
from dcamt.networks.backbone import Network
from dcamt.networks.shares import mean_of_processes
from dcamt.ops.mix import cutmix, paste
from dcamt.section import Fraction, Section
from dcamt.types import IGNORE, Batch, Progress, Update


class DualFete(Method):
    """Two teachers and a student, none of which is an average of another."""

    predicts = ("student",)

    views = 2

    class Config(Section):
        weight: float = 1.0
        """Weight of the loss between the teachers."""
        ramp: Fraction = 0.2
        """Share of the run over which that loss rises to full weight."""
        threshold: Fraction = 0.7
        """Confidence from which a voxel counts."""
        trial: PositiveFloat = 0.05
        """Length of a trial step in each tensor of weights."""
        boxes: Fraction = 0.5
        """Probability that a strong view gets a box of another patch."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.teachers = nn.ModuleList([network(), network()])
        self.student = network()

    def parts(self) -> dict[str, list[nn.Parameter]]:
        return {
            "student": list(self.student.parameters()),
            "teachers": list(self.teachers.parameters()),
        }

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        c = self.config
        count = len(batch.image_u)
        said, boxes = [], []
        for teacher, strong in zip(self.teachers, batch.strong_u, strict=True):
            sides = Beta(4.0, 4.0).sample((count,)).sqrt() * (torch.rand(count) < c.boxes)
            boxes.append(cutmix(batch.inside_u, sides))
            mixed = paste(strong, boxes[-1])
            logits = teacher(torch.cat([batch.image_l, batch.image_u, strong, mixed]))
            said.append(logits.split([len(batch.image_l), count, count, count]))
        p_u = [logits_u.detach().float().softmax(1) for _, logits_u, _, _ in said]
        (sure_1, class_1), (sure_2, class_2) = (p.max(1) for p in p_u)
        first = sure_1 > sure_2
        guess = torch.where(first, class_1, class_2).masked_fill(~batch.inside_u, IGNORE)
        agree = batch.inside_u & (class_1 == class_2)
        differ = batch.inside_u & (class_1 != class_2)

        with torch.enable_grad():  # a trial steps also where nothing is trained
            logits_s = self.student(batch.image_u)
            d_agree, d_differ = self._feedback(logits_s, guess, (agree, differ), batch)
        taught = dice_ce(logits_s, guess)
        update(taught, "student")

        terms = {"student": taught, "helped_agree": d_agree, "helped_differ": d_differ}
        loss = torch.zeros_like(taught)
        for i, name in enumerate(("first", "second")):
            logits_l, _, logits_v, logits_m = said[i]
            surer = first if i == 0 else ~first
            own = logits_v.argmax(1)
            receivers = (d_agree, agree & ~surer), (d_differ, differ & surer)
            for d, where in receivers:
                loss = loss + d * cross_entropy(logits_v, own.masked_fill(~where, IGNORE))
            p_other = p_u[1 - i]
            certain = batch.inside_u & (p_other.amax(1) >= c.threshold)
            supervised = dice_ce(logits_l, batch.label_l)
            cross = dice_ce(logits_m, paste(pseudo_label(p_other, certain), boxes[i]))
            loss = loss + supervised + c.weight * at.ramp(c.ramp) * cross
            terms |= {f"supervised_{name}": supervised, f"cross_{name}": cross}
        update(loss, "teachers")
        return terms | {"differ": masked_mean(differ, batch.inside_u)}

    def _feedback(
        self, logits: Tensor, guess: Tensor, regions: tuple[Tensor, ...], batch: Batch
    ) -> list[Tensor]:
        """How much a trial step on each of ``regions`` lowers the loss on labelled patches.

        ``logits`` are the student's of unlabelled patches, ``guess`` their label.
        """
        weights = {name: weight.detach() for name, weight in self.student.named_parameters()}
        before, helped = self._judge(weights, batch), []
        for region in regions:
            loss = dice_ce(logits, guess.masked_fill(~region, IGNORE))
            with torch.autocast(logits.device.type, enabled=False):  # it is for the forward pass
                gradients = torch.autograd.grad(
                    loss, list(self.student.parameters()), retain_graph=True
                )
            moved = {
                name: weight - self.config.trial * gradient / gradient.norm().clamp(min=1e-12)
                for (name, weight), gradient in zip(
                    weights.items(), mean_of_processes(gradients), strict=True
                )
            }
            helped.append(before - self._judge(moved, batch))
        return helped

    @torch.no_grad()
    def _judge(self, weights: dict[str, Tensor], batch: Batch) -> Tensor:
        """Cross-entropy of a student of these weights on labelled patches; it stays as it is."""
        statistics = {name: buffer.clone() for name, buffer in self.student.named_buffers()}
        logits = functional_call(self.student, weights | statistics, (batch.image_l,))
        return cross_entropy(logits, batch.label_l)
