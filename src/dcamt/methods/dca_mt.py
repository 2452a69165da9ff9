"""DCA-MT: two V-Nets that exchange features by cross-attention and distil into each other.

"Dual cross-attentive mutual teaching for semi-supervised 3D medical segmentation", PLOS ONE 2026,
doi 10.1371/journal.pone.0352358. One iteration, on labelled patches l and unlabelled patches u:

    f_T, f_S = encoders(l + u)                                   bottleneck features
    f_T, f_S = cross-attention(f_T, f_S)                         sections 3.2 and 3.4
    L_feat   = a MMD(f_T, f_S) + b L_intra + g L_inter           eqs. 1-6
    L_mutual = l1 tau^2 KL(p_T || p_S) + l2 tau^2 KL(p_S || p_T) eqs. 7-10
    L        = L_sup(T) + L_sup(S) + ramp (L_feat + L_mutual)

Where the paper is silent or contradicts itself, both readings are options of ``Config``, and the
default is the one that measured better (docs/results.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from dcamt.config import Fraction, Section
from dcamt.losses.alignment import intra_inter, mmd
from dcamt.losses.consistency import distillation
from dcamt.losses.overlap import IGNORE, dice_ce
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

        Beyond the paper: ``noise`` is the standard deviation of what is added to each branch's
        input apart; ``paste`` is the share of each side of a box that labelled and unlabelled
        patches exchange (0: none), while the targets come from the unmixed patches; it is part of
        the distillation and goes with it.
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
        to_student: float = 1.0  # l1
        to_teacher: float = 0.3  # l2
        temperature: PositiveFloat = 1.0  # tau
        ramp: Fraction = 0.4
        teacher: Literal["gradient", "ema", "both"] = "gradient"
        ema_early: Fraction = 0.99
        ema_late: Fraction = 0.999
        ema_switch: Fraction = 0.5
        noise: Annotated[float, Field(ge=0)] = 0.0
        paste: Fraction = 0.0

    config: Config

    def __init__(self, config: Config, network: Callable[[], VNet]):
        super().__init__(config, network)
        self.uses = _COMPONENTS[config.components]
        self.student = network()
        if config.teacher == "ema":
            self.teacher = frozen_copy(self.student, network)
        else:
            self.teacher = network()
        self.exchange = None
        if "attention" in self.uses:
            self.exchange = CrossAttention(
                self.student.features, config.heads, config.head_size, config.shared_attention
            )

    def forward(self, image_t: Tensor, image_s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits of teacher and student ``(B, K, X, Y, Z)`` and their exchanged features."""
        features_t, skips_t = self.teacher.encode(image_t)
        features_s, skips_s = self.student.encode(image_s)
        if self.exchange is not None:
            features_t, features_s = self.exchange(features_t, features_s)
        logits_t = self.teacher.decode(features_t, skips_t)
        logits_s = self.student.decode(features_s, skips_s)
        return logits_t, logits_s, features_t, features_s

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        c = self.config
        x = self._patches(batch)
        logits_t, logits_s, features_t, features_s = self(
            self._noisy(x.image), self._noisy(x.image)
        )
        terms = {
            "supervised_teacher": dice_ce(logits_t, x.label),
            "supervised_student": dice_ce(logits_s, x.label),
        }
        loss = terms["supervised_teacher"] + terms["supervised_student"]
        ramp = at.ramp(c.ramp)
        # What each branch says of the unlabelled voxels, which the other learns.
        teacher_says, student_says = x.clean or (logits_t.detach(), logits_s.detach())
        if "alignment" in self.uses:
            guess = teacher_says.argmax(1).masked_fill(~x.unlabeled, IGNORE)
            classes = torch.where(x.label == IGNORE, guess, x.label)
            votes = one_hot(classes, self.student.classes)
            t, s, found = items(features_t, features_s, votes, c.units, c.foreground_share)
            terms["mmd"] = mmd(t, s, c.bandwidths)
            terms["intra"], terms["inter"] = intra_inter(t, s, found)
            loss = loss + ramp * (
                c.mmd_weight * terms["mmd"]
                + c.intra_weight * terms["intra"]
                + c.inter_weight * terms["inter"]
            )
        if "distillation" in self.uses:
            tau = c.temperature
            terms["to_student"] = distillation(logits_s, teacher_says, x.unlabeled, tau)
            terms["to_teacher"] = distillation(logits_t, student_says, x.unlabeled, tau)
            loss = loss + ramp * (
                c.to_student * terms["to_student"] + c.to_teacher * terms["to_teacher"]
            )
        update(loss)
        if c.teacher != "gradient":
            late = at.iteration >= c.ema_switch * at.iterations
            ema_(self.teacher, self.student, c.ema_late if late else c.ema_early)
        return terms

    def branches(self, image: Tensor) -> Tensor:
        logits_t, logits_s, _, _ = self(image, image)
        return torch.stack([logits_t.float().softmax(1), logits_s.float().softmax(1)])

    def _noisy(self, image: Tensor) -> Tensor:
        if not self.config.noise:
            return image
        return image + (self.config.noise * torch.randn_like(image)).clamp(-0.2, 0.2)

    @torch.no_grad()
    def _patches(self, batch: Batch) -> "_Patches":
        """Labelled and unlabelled patches as one batch, mixed if ``paste`` says so."""
        labeled, unlabeled = len(batch.image_l), len(batch.image_u)
        no_label = torch.full_like(batch.inside_u, IGNORE, dtype=batch.label_l.dtype)
        nowhere = torch.zeros_like(batch.label_l, dtype=torch.bool)
        if not self.config.paste or "distillation" not in self.uses:
            return _Patches(
                torch.cat([batch.image_l, batch.image_u]),
                torch.cat([batch.label_l, no_label]),
                torch.cat([nowhere, batch.inside_u]),
            )
        box = random_box(batch.image_u.shape[2:], self.config.paste, batch.image_u.device)
        to_u = torch.arange(labeled, device=box.device) % unlabeled  # partner of each labelled
        to_l = torch.arange(unlabeled, device=box.device) % labeled  # and of each unlabelled patch
        clean_t, clean_s, _, _ = self(batch.image_u, batch.image_u)
        return _Patches(
            torch.cat(
                [
                    torch.where(box, batch.image_l, batch.image_u[to_u]),
                    torch.where(box, batch.image_u, batch.image_l[to_l]),
                ]
            ),
            torch.cat(
                [
                    batch.label_l.masked_fill(~box, IGNORE),
                    batch.label_l[to_l].masked_fill(box, IGNORE),
                ]
            ),
            torch.cat([batch.inside_u[to_u] & ~box, batch.inside_u & box]),
            (torch.cat([clean_t[to_u], clean_t]), torch.cat([clean_s[to_u], clean_s])),
        )


@dataclass(frozen=True)
class _Patches:
    """A batch as DCA-MT sees it; B = L + U."""

    image: Tensor  # (B, C, X, Y, Z)
    label: Tensor  # (B, X, Y, Z), IGNORE where no label is known
    unlabeled: Tensor  # (B, X, Y, Z), voxels of unlabelled scans
    clean: tuple[Tensor, Tensor] | None = None  # both branches' logits of the unmixed patches


def one_hot(classes: Tensor, count: int) -> Tensor:
    """``(B, X, Y, Z)`` with IGNORE to ``(B, count, X, Y, Z)`` float; IGNORE is no class at all."""
    hot = F.one_hot(classes.clamp(min=0), count) * (classes != IGNORE).unsqueeze(-1)
    return hot.movedim(-1, 1).float()


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
