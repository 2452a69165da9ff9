"""DCA-MT: two networks that exchange features by cross-attention and distil into each other.

"Dual cross-attentive mutual teaching for semi-supervised 3D medical segmentation", PLOS ONE 2026,
doi 10.1371/journal.pone.0352358. One iteration, on labelled patches l and unlabelled patches u:

    f_T, f_S = encoders(l + u)                                   bottleneck features
    f_T, f_S = cross-attention(f_T, f_S)                         sections 3.2 and 3.4
    L_feat   = a MMD(f_T, f_S) + b L_intra + g L_inter           eqs. 1-6
    L_mutual = l1 tau^2 KL(p_T || p_S) + l2 tau^2 KL(p_S || p_T) eqs. 7-10
    L        = L_sup(T) + L_sup(S) + ramp (L_feat + L_mutual)

Where the paper is silent or contradicts itself, both readings are options of ``Config``, and the
default is the one that measured better (docs/tried.md). Four defaults leave the paper: a branch
learns the other's most probable class (``targets``), it sees unlabelled patches with labelled ones
around them (``paste``), voxels on which the branches differ count more (``review``), and L_intra
and L_inter compare means (``compare``). The paper's own reading is
``targets=soft to_student=1.0 to_teacher=0.3 paste=0 review=0 compare=pairs``; beside it,
``units=samples`` and ``teacher=both`` are readings of what the paper leaves open.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from dcamt.config import BackboneConfig
from dcamt.errors import InputError
from dcamt.losses.alignment import intra_inter, items, mmd
from dcamt.losses.consistency import distillation, softmax_mse
from dcamt.losses.overlap import dice_ce, one_hot, pseudo_label
from dcamt.methods.method import Method, ema_, frozen_copy
from dcamt.networks.attention import CrossAttention
from dcamt.networks.backbone import Backbone, Network, Stride
from dcamt.networks.convolution import Pointwise
from dcamt.ops.mix import random_box
from dcamt.section import Fraction, Section
from dcamt.types import IGNORE, Batch, Progress, Update

_COMPONENTS = {
    "base": frozenset[str](),
    "loss": frozenset({"alignment"}),
    "cross-attention": frozenset({"attention"}),
    "mutual": frozenset({"distillation"}),
    "all": frozenset({"alignment", "attention", "distillation"}),
}


class DCAMT(Method):
    """Teacher and student; ``predict`` averages their probabilities."""

    predicts = ("teacher", "student")

    class Config(Section):
        """Options; the paper's symbols in brackets.

        Beyond the paper, and part of the distillation, are ``targets=hard``, ``review``, mixed
        patches (from ``paste`` to ``around``), ``strong`` views and ``confidence``. Targets always
        come from the patch itself, without mixing and strong changes. So each branch also looks at
        that patch.
        """

        components: Literal["base", "loss", "cross-attention", "mutual", "all"] = "all"
        """Which parts are used: the rows of the ablation (Tables 1-2)."""
        heads: PositiveInt = 4
        """Heads of the cross-attention."""
        head_size: PositiveInt = 32
        """Channels of each head."""
        shared_attention: bool = False
        """Whether one attention serves both directions."""
        units: Literal["tokens", "samples"] = "tokens"
        """What L_feat compares: bottleneck voxels (tokens), or pooled samples."""
        foreground_share: Fraction = 0.1
        """Share of its voxels that a class must fill to name a token; 0.5 is the majority."""
        compare: Literal["means", "pairs"] = "means"
        """What L_intra and L_inter compare: each class's mean, or all pairs (the paper)."""
        bandwidths: tuple[PositiveFloat, ...] = (1.0,)
        """Kernel bandwidths, as multiples of the median distance."""
        mmd_weight: float = 1.0
        """Weight of MMD (a)."""
        intra_weight: float = 0.5
        """Weight of L_intra (b)."""
        inter_weight: float = 0.1
        """Weight of L_inter (g)."""
        to_student: float = 0.5
        """Weight of what the student learns (l1); the paper's 1.0 goes with soft targets."""
        to_teacher: float = 0.5
        """Weight of what the teacher learns (l2); the paper's 0.3 goes with soft targets."""
        temperature: PositiveFloat = 1.0
        """Temperature of the soft targets (tau)."""
        ramp: Fraction = 0.4
        """Share of the run over which the unlabelled terms rise to full weight."""
        teacher: Literal["gradient", "ema", "both"] = "gradient"
        """What moves the teacher: its gradient, the average of the student, or both."""
        ema_early: Fraction = 0.99
        """Decay of that average at first."""
        ema_late: Fraction = 0.999
        """Decay of that average later."""
        ema_switch: Fraction = 0.5
        """Share of the run after which the late decay holds."""
        targets: Literal["soft", "hard"] = "hard"
        """`soft`: KL divergence, as in the paper. `hard`: the other's most probable class."""
        review: float = 2.0
        """Weight of the squared error where the branches differ (as in sdcl.py); 0: none."""
        paste: Fraction = 0.67
        """Share of each side that an unlabelled patch keeps as a box; 0 mixes nothing."""
        boxes: PositiveInt = 1
        """In how many mixed patches each unlabelled one is used; with 2, half of them are used."""
        around: Literal["labeled", "unlabeled", "either"] = "labeled"
        """What lies around the box; `either` chooses at random each time."""
        strong: Literal[0, 1, 2] = 0
        """Strong views to learn from: none, one for both branches, or one for each."""
        confidence: Fraction = 0.0
        """Least probability of a class with which a branch teaches."""
        teacher_network: BackboneConfig | None = None
        """Another backbone for the teacher: a name, or name, width and size; same stride."""
        student_network: BackboneConfig | None = None
        """Another backbone for the student; features are projected where channels differ."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.uses = _COMPONENTS[config.components]
        self.views = config.strong if "distillation" in self.uses else 0
        if config.teacher != "gradient" and config.teacher_network != config.student_network:
            raise InputError(
                f"method.teacher = {config.teacher} averages the weights of two networks that are "
                "alike; set method.teacher=gradient, or give teacher_network and student_network "
                "the same value"
            )
        student = network(**_asked(config.student_network))
        teacher = (
            frozen_copy(student)
            if config.teacher == "ema"
            else network(**_asked(config.teacher_network))
        )
        if self.uses & {"attention", "alignment"} and teacher.stride != student.stride:
            raise InputError(
                "method dca-mt: the bottlenecks of teacher and student are of different sizes "
                f"({_shape(teacher.stride)} and {_shape(student.stride)} voxels of the image for "
                "one); choose backbones whose strides are the same"
            )
        exchange = None
        if "attention" in self.uses:
            exchange = CrossAttention(
                student.features, config.heads, config.head_size, config.shared_attention
            )
        self.pair = Pair(teacher, student, exchange, compared="alignment" in self.uses)

    @classmethod
    def backbones(cls, config: Config, network: BackboneConfig) -> tuple[BackboneConfig, ...]:
        return config.teacher_network or network, config.student_network or network

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        c = self.config
        x = self._patches(batch)
        logits_t, logits_s, features_t, features_s = self.pair(x.image_t, x.image_s)
        n = len(batch.image_l)
        known = slice(None) if x.clean else slice(n)  # only mixed patches add labels to the first n
        terms = {
            "supervised_teacher": dice_ce(logits_t[known], x.label[known]),
            "supervised_student": dice_ce(logits_s[known], x.label[known]),
        }
        loss = terms["supervised_teacher"] + terms["supervised_student"]
        ramp = at.ramp(c.ramp)
        # What each branch says of the unlabelled voxels, which the other learns.
        says_t, says_s = x.clean or (logits_t[n:].detach(), logits_s[n:].detach())
        sure_t, sure_s = (self._sure(says, x.learn) for says in (says_t, says_s))
        picks_t, picks_s = pseudo_label(says_t, sure_t), pseudo_label(says_s, sure_s)
        if "alignment" in self.uses:
            votes = one_hot(x.label_with(picks_t), self.pair.student.classes)
            stride = self.pair.student.stride
            t, s, found = items(features_t, features_s, votes, stride, c.units, c.foreground_share)
            terms["mmd"] = mmd(t, s, c.bandwidths)
            terms["intra"], terms["inter"] = intra_inter(t, s, found, c.compare == "means")
            loss = loss + ramp * (
                c.mmd_weight * terms["mmd"]
                + c.intra_weight * terms["intra"]
                + c.inter_weight * terms["inter"]
            )
        if "distillation" in self.uses:
            if c.targets == "soft":
                terms["to_student"] = distillation(logits_s[n:], says_t, sure_t, c.temperature)
                terms["to_teacher"] = distillation(logits_t[n:], says_s, sure_s, c.temperature)
            else:
                terms["to_student"] = dice_ce(logits_s[n:], picks_t)
                terms["to_teacher"] = dice_ce(logits_t[n:], picks_s)
            loss = loss + ramp * (
                c.to_student * terms["to_student"] + c.to_teacher * terms["to_teacher"]
            )
            if c.review:
                differ = logits_t.argmax(1) != logits_s.argmax(1)
                # If they also differed on the plain patch, they would only change sides.
                label = x.label_with(picks_t.masked_fill(picks_t != picks_s, IGNORE))
                target, where = one_hot(label, logits_s.shape[1]), differ & (label != IGNORE)
                of_teacher = softmax_mse(logits_t, target, where)
                terms["review"] = of_teacher + softmax_mse(logits_s, target, where)
                loss = loss + ramp * c.review * terms["review"]
        update(loss)
        if c.teacher != "gradient":
            late = at.iteration >= c.ema_switch * at.iterations
            ema_(self.pair.teacher, self.pair.student, c.ema_late if late else c.ema_early)
        return terms

    def branches(self, image: Tensor) -> Tensor:
        logits_t, logits_s, _, _ = self.pair(image, image)
        return torch.stack([logits_t.float().softmax(1), logits_s.float().softmax(1)])

    def _sure(self, says: Tensor, learn: Tensor) -> Tensor:
        """``learn`` without the voxels on which ``says``, logits, is less than ``confidence``."""
        if not self.config.confidence:
            return learn
        return learn & (says.float().softmax(1).amax(1) >= self.config.confidence)

    @torch.no_grad()
    def _patches(self, batch: Batch) -> "_Patches":
        """Labelled and unlabelled patches as one batch, mixed and seen as the options say."""
        c, n = self.config, len(batch.image_u)
        if "distillation" not in self.uses or not (c.paste or c.strong):
            image = torch.cat([batch.image_l, batch.image_u])
            nothing = torch.full_like(batch.inside_u, IGNORE, dtype=torch.int64)
            return _Patches(image, image, torch.cat([batch.label_l, nothing]), batch.inside_u)
        size, device = batch.image_u.shape[2:], batch.image_u.device
        places = torch.arange(n, device=device)
        stride = max(math.prod(b.stride) for b in (self.pair.teacher, self.pair.student))
        least = 2 if size.numel() == stride else 1  # one value has no variance to normalise by
        seen = min(n, max(least, math.ceil(n / c.boxes)))
        of = places % seen  # the unlabelled patch in each place
        next_to = (of + 1) % seen  # the unlabelled one that may lie around it
        around = (places // seen + of) % len(batch.image_l)  # and the labelled one
        image = batch.image_u[:seen]
        clean_t, clean_s, _, _ = self.pair(image, image)
        torch.clear_autocast_cache()  # older PyTorch reuses these casts, which have no gradients
        if c.paste:
            own = torch.stack([random_box(size, c.paste, device) for _ in range(n)])
            own &= batch.inside_u[of]
        else:
            own = torch.ones_like(batch.inside_u)
        unlabeled = torch.full((n, 1, 1, 1), c.around == "unlabeled", device=device)
        if c.around == "either":
            unlabeled = torch.rand(n, 1, 1, 1, device=device) < 0.5
        views = batch.strong_u[: self.views] or (batch.image_u,)

        def mixed(view: Tensor) -> Tensor:
            other = batch.image_l[around]
            if c.around != "labeled":
                other = torch.where(unlabeled.unsqueeze(1), view[next_to], other)
            return torch.cat([batch.image_l, torch.where(own.unsqueeze(1), view[of], other)])

        def said(clean: Tensor) -> Tensor:
            if c.around == "labeled":
                return clean[of]  # nothing is learnt beyond the box
            return torch.where(own.unsqueeze(1), clean[of], clean[next_to])

        label = batch.label_l[around].masked_fill(own | unlabeled, IGNORE)
        learn = torch.where(own, batch.inside_u[of], unlabeled & batch.inside_u[next_to])
        image_t = mixed(views[0])
        return _Patches(
            image_t,
            mixed(views[1]) if len(views) > 1 else image_t,
            torch.cat([batch.label_l, label]),
            learn,
            (said(clean_t), said(clean_s)),
        )


def _asked(backbone: BackboneConfig | None) -> dict[str, Any]:
    return {} if backbone is None else backbone.model_dump()


def _shape(stride: Stride) -> str:
    return " x ".join(map(str, stride))


class Pair(nn.Module):
    """Teacher and student, and what lets their bottlenecks look at each other.

    ``compared``: whether the features that are returned will be compared with each other.
    """

    def __init__(
        self,
        teacher: Backbone,
        student: Backbone,
        exchange: CrossAttention | None,
        compared: bool = True,
    ):
        super().__init__()
        self.teacher, self.student, self.exchange = teacher, student, exchange
        self.project: nn.Module = nn.Identity()
        self.back: nn.Module = nn.Identity()
        if teacher.features != student.features and (compared or exchange is not None):
            self.project = Pointwise(teacher.features, student.features)
            if exchange is not None:
                self.back = Pointwise(student.features, teacher.features)

    def forward(self, image_t: Tensor, image_s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits of teacher and student ``(B, K, X, Y, Z)`` and their exchanged features.

        Both features have the student's channels, unless nothing is exchanged or compared.
        """
        own_t, skips_t = self.teacher.encode(image_t)
        features_s, skips_s = self.student.encode(image_s)
        features_t = projected = self.project(own_t)
        if self.exchange is not None:
            features_t, features_s = self.exchange(projected, features_s)
            if isinstance(self.back, nn.Identity):
                own_t = features_t
            else:
                own_t = own_t + self.back(features_t - projected)
        logits_t = self.teacher.decode(own_t, skips_t)
        logits_s = self.student.decode(features_s, skips_s)
        return logits_t, logits_s, features_t, features_s


@dataclass(frozen=True)
class _Patches:
    """A batch as DCA-MT sees it: L labelled patches, then U with unlabelled voxels."""

    image_t: Tensor  # (L + U, C, X, Y, Z), what the teacher sees
    image_s: Tensor  # and the student
    label: Tensor  # (L + U, X, Y, Z), IGNORE where no label is known
    learn: Tensor  # (U, X, Y, Z), the unlabelled voxels, on which the branches teach each other
    clean: tuple[Tensor, Tensor] | None = None  # what both branches say of the patches unmixed

    def label_with(self, picks: Tensor) -> Tensor:
        """``label`` with ``picks`` (U, X, Y, Z) where none is known in the last U patches."""
        known, partly = self.label[: -len(picks)], self.label[-len(picks) :]
        return torch.cat([known, torch.where(partly == IGNORE, picks, partly)])
