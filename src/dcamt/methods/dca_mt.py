"""DCA-MT: two V-Nets that exchange features by cross-attention and distil into each other.

"Dual cross-attentive mutual teaching for semi-supervised 3D medical segmentation", PLOS ONE 2026,
doi 10.1371/journal.pone.0352358. One iteration, on labelled patches l and unlabelled patches u:

    f_T, f_S = encoders(l + u)                                   bottleneck features
    f_T, f_S = cross-attention(f_T, f_S)                         sections 3.2 and 3.4
    L_feat   = a MMD(f_T, f_S) + b L_intra + g L_inter           eqs. 1-6
    L_mutual = l1 tau^2 KL(p_T || p_S) + l2 tau^2 KL(p_S || p_T) eqs. 7-10
    L        = L_sup(T) + L_sup(S) + ramp (L_feat + L_mutual)

Where the paper is silent or contradicts itself, both readings are options of ``Config``, and the
default is the one that measured better (docs/results.md). Two defaults leave the paper: a branch
learns the other's most probable class (``targets``), and sees unlabelled patches with labelled
ones around them (``paste``). The paper's own reading is
``targets=soft to_student=1.0 to_teacher=0.3 paste=0``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from dcamt.config import Fraction, Section
from dcamt.losses.alignment import intra_inter, mmd
from dcamt.losses.consistency import distillation
from dcamt.losses.overlap import IGNORE, dice_ce, one_hot, pseudo_label
from dcamt.methods.method import Batch, Method, Progress, Update, ema_, frozen_copy
from dcamt.networks.attention import CrossAttention
from dcamt.networks.vnet import STRIDE, VNet
from dcamt.ops.mix import random_box

_COMPONENTS = {
    "base": frozenset[str](),
    "loss": frozenset({"alignment"}),
    "cross-attention": frozenset({"attention"}),
    "mutual": frozenset({"distillation"}),
    "all": frozenset({"alignment", "attention", "distillation"}),
}


class DCAMT(Method):
    """Teacher and student; ``predict`` averages their probabilities."""

    class Config(Section):
        """Options; the paper's symbols in brackets.

        ``components``: the rows of the ablation (Tables 1-2). ``units``: what L_feat compares,
        pooled samples or bottleneck voxels; a token is foreground if that class fills
        ``foreground_share`` of the voxels below it (0.5: by majority). ``teacher``: moved by its
        ``gradient``, by the ``ema`` of the student, or by ``both``, gradient first. The decay is
        ``ema_early`` until ``ema_switch`` of the run and ``ema_late`` after. ``ramp``: fraction of
        the run over which the unlabelled terms reach full weight.

        Beyond the paper: ``targets`` that are ``hard`` put 0.5 (cross-entropy + Dice) with the
        other branch's most probable class in the place of the KL divergence; ``soft`` is the paper.
        ``paste`` is the share of each side of the box that a patch keeps for itself (0: no mixing);
        around it lies its partner from the other half of the batch, while the targets come from the
        unmixed patches. ``paste_into`` mixes ``unlabeled`` patches alone, so that the labelled ones
        stay whole, or ``both`` halves. All of it is part of the distillation and goes with it.
        """

        components: Literal["base", "loss", "cross-attention", "mutual", "all"] = "all"
        heads: PositiveInt = 4
        head_size: PositiveInt = 32
        shared_attention: bool = False
        units: Literal["tokens", "samples"] = "tokens"
        foreground_share: Fraction = 0.1
        bandwidths: tuple[PositiveFloat, ...] = (1.0,)
        mmd_weight: float = 1.0  # a
        intra_weight: float = 0.5  # b
        inter_weight: float = 0.1  # g
        to_student: float = 0.5  # l1; the paper's 1.0 goes with soft targets
        to_teacher: float = 0.5  # l2; the paper's 0.3 likewise
        temperature: PositiveFloat = 1.0  # tau
        ramp: Fraction = 0.4
        teacher: Literal["gradient", "ema", "both"] = "gradient"
        ema_early: Fraction = 0.99
        ema_late: Fraction = 0.999
        ema_switch: Fraction = 0.5
        targets: Literal["soft", "hard"] = "hard"
        paste: Fraction = 0.67
        paste_into: Literal["unlabeled", "both"] = "unlabeled"

    config: Config

    def __init__(self, config: Config, network: Callable[[], VNet]):
        super().__init__(config, network)
        self.uses = _COMPONENTS[config.components]
        student = network()
        teacher = frozen_copy(student) if config.teacher == "ema" else network()
        exchange = None
        if "attention" in self.uses:
            exchange = CrossAttention(
                student.features, config.heads, config.head_size, config.shared_attention
            )
        self.pair = Pair(teacher, student, exchange)

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        c = self.config
        x = self._patches(batch)
        logits_t, logits_s, features_t, features_s = self.pair(x.image, x.image)
        terms = {
            "supervised_teacher": dice_ce(logits_t, x.label),
            "supervised_student": dice_ce(logits_s, x.label),
        }
        loss = terms["supervised_teacher"] + terms["supervised_student"]
        ramp = at.ramp(c.ramp)
        # What each branch says of the unlabelled voxels, which the other learns.
        teacher_says, student_says = x.clean or (logits_t.detach(), logits_s.detach())
        if "alignment" in self.uses:
            guess = pseudo_label(teacher_says, x.unlabeled)
            classes = torch.where(x.label == IGNORE, guess, x.label)
            votes = one_hot(classes, self.pair.student.classes)
            t, s, found = items(features_t, features_s, votes, c.units, c.foreground_share)
            terms["mmd"] = mmd(t, s, c.bandwidths)
            terms["intra"], terms["inter"] = intra_inter(t, s, found)
            loss = loss + ramp * (
                c.mmd_weight * terms["mmd"]
                + c.intra_weight * terms["intra"]
                + c.inter_weight * terms["inter"]
            )
        if "distillation" in self.uses:
            terms["to_student"] = self._learn(logits_s, teacher_says, x)
            terms["to_teacher"] = self._learn(logits_t, student_says, x)
            loss = loss + ramp * (
                c.to_student * terms["to_student"] + c.to_teacher * terms["to_teacher"]
            )
        update(loss)
        if c.teacher != "gradient":
            late = at.iteration >= c.ema_switch * at.iterations
            ema_(self.pair.teacher, self.pair.student, c.ema_late if late else c.ema_early)
        return terms

    def _learn(self, learner: Tensor, source: Tensor, x: "_Patches") -> Tensor:
        """What ``learner`` lacks of ``source`` on unlabelled voxels; both are logits."""
        learner, source, inside = (each[x.first :] for each in (learner, source, x.unlabeled))
        if self.config.targets == "soft":
            return distillation(learner, source, inside, self.config.temperature)
        return dice_ce(learner, pseudo_label(source, inside))

    def branches(self, image: Tensor) -> Tensor:
        logits_t, logits_s, _, _ = self.pair(image, image)
        return torch.stack([logits_t.float().softmax(1), logits_s.float().softmax(1)])

    @torch.no_grad()
    def _patches(self, batch: Batch) -> "_Patches":
        """Labelled and unlabelled patches as one batch, mixed if ``paste`` says so."""
        to_u = torch.arange(len(batch.image_l)) % len(batch.image_u)  # partner of each labelled
        to_l = torch.arange(len(batch.image_u)) % len(batch.image_l)  # and each unlabelled patch
        own_l = own_u = torch.ones_like(batch.inside_u[0])  # voxels a patch keeps for itself
        clean = None
        if "distillation" in self.uses and self.config.paste:
            clean_t, clean_s, _, _ = self.pair(batch.image_u, batch.image_u)
            clean = torch.cat([clean_t[to_u], clean_t]), torch.cat([clean_s[to_u], clean_s])
            own_u = random_box(own_u.shape, self.config.paste, own_u.device)
            if self.config.paste_into == "both":
                own_l = own_u
        image_l = torch.where(own_l, batch.image_l, batch.image_u[to_u])
        image_u = torch.where(own_u, batch.image_u, batch.image_l[to_l])
        label_l = batch.label_l.masked_fill(~own_l, IGNORE)
        label_u = batch.label_l[to_l].masked_fill(own_u, IGNORE)
        return _Patches(
            torch.cat([image_l, image_u]),
            torch.cat([label_l, label_u]),
            torch.cat([batch.inside_u[to_u] & ~own_l, batch.inside_u & own_u]),
            0 if self.config.paste_into == "both" else len(image_l),
            clean,
        )


class Pair(nn.Module):
    """Teacher and student V-Net, and what lets their bottlenecks look at each other."""

    def __init__(self, teacher: VNet, student: VNet, exchange: CrossAttention | None):
        super().__init__()
        self.teacher, self.student, self.exchange = teacher, student, exchange

    def forward(self, image_t: Tensor, image_s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits of teacher and student ``(B, K, X, Y, Z)`` and their exchanged features."""
        features_t, skips_t = self.teacher.encode(image_t)
        features_s, skips_s = self.student.encode(image_s)
        if self.exchange is not None:
            features_t, features_s = self.exchange(features_t, features_s)
        logits_t = self.teacher.decode(features_t, skips_t)
        logits_s = self.student.decode(features_s, skips_s)
        return logits_t, logits_s, features_t, features_s


@dataclass(frozen=True)
class _Patches:
    """A batch as DCA-MT sees it; B = L + U."""

    image: Tensor  # (B, C, X, Y, Z)
    label: Tensor  # (B, X, Y, Z), IGNORE where no label is known
    unlabeled: Tensor  # (B, X, Y, Z), voxels of unlabelled scans
    first: int  # the first patch that has any
    clean: tuple[Tensor, Tensor] | None = None  # both branches' logits of the unmixed patches


def items(
    teacher: Tensor, student: Tensor, voxels: Tensor, units: str, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Feature rows ``(N, D)`` of both branches and their classes ``(N,)``.

    ``teacher``, ``student``: ``(B, D, x, y, z)``; ``voxels``: one-hot classes ``(B, K, X, Y, Z)``.
    ``tokens``: one item per bottleneck voxel; its class is the most frequent foreground class if
    that fills at least ``share`` of the known voxels below, else background; a token with nothing
    known below is left out. ``samples``: one item per patch, features pooled, class the most
    frequent foreground class present, else background (the paper's reading).
    """
    if units == "samples":
        foreground = voxels[:, 1:].sum((2, 3, 4))
        classes = torch.where(foreground.sum(1) > 0, foreground.argmax(1) + 1, 0)
        return teacher.float().mean((2, 3, 4)), student.float().mean((2, 3, 4)), classes
    votes = F.avg_pool3d(voxels, STRIDE).movedim(1, -1).flatten(0, 3)
    known = votes.sum(1)
    most, foreground = votes[:, 1:].max(1)
    classes = torch.where((most > 0) & (most >= share * known), foreground + 1, 0)
    seen = known > 0

    def rows(features: Tensor) -> Tensor:
        return features.float().movedim(1, -1).flatten(0, 3)[seen]

    return rows(teacher), rows(student), classes[seen]
