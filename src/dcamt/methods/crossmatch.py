"""CrossMatch: one network on three views, decoded three times, must agree with its plainest answer.

Zhao et al., "CrossMatch: Enhance semi-supervised medical image segmentation with perturbation
strategies and knowledge distillation", IEEE JBHI 2024. Of the unlabelled patches w there are two
strong views s_1 and s_2, each with a box of another patch in half of the cases (CutMix). The levels
of the encoder are decoded clean (p), with feature dropout ``weak`` (p') and ``strong`` (p''):

    Y(p)    = argmax p where max p >= (threshold + (1 - threshold) ramp) ln 2
    L_image = Dice(p_s1, Y(p_w)) + Dice(p_s2, Y(p_w))
    L_clean = mean of Dice(q, Y(p_w)) over q = p'_w, p''_w, p'_s2, p''_s2
    L_alike = mean of Dice(p'_s2, Y(p'_w)) and Dice(p''_s2, Y(p''_w))
    L       = 0.5 (L_sup + image L_image + (1 - alike) L_clean + alike L_alike)

Y has no gradient, and the boxes of the view that it is for. Dice has squared denominators. With two
classes it is of the foreground, with more it is the mean over all, background included, as in the
authors' scripts for the left atrium and for the heart (ACDC). All else is as for the left atrium.
The network's own dropout acts on the bottleneck, once for all three decodings. The evaluated
network decodes clean, without any dropout. The threshold is that of the authors' script, ln 2
included; it rises from 0.52 to 0.69. The optimiser is AdamW, whose rate falls as the protocol's
does.

Unlike that script, the schedules end with the run (there it stops at 14,000 of 17,000 iterations),
a patch is mixed with the one before it rather than with others that are drawn for that alone and
labelled by the network at rest, boxes have the proportions of the patch, and voxels are exchanged
only where both are real. Strong views are the protocol's.
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor, nn
from torch.optim import Optimizer

from dcamt.config import TrainConfig
from dcamt.losses.consistency import masked_mean
from dcamt.losses.overlap import dice_ce, pseudo_label, soft_dice
from dcamt.methods.method import Method, falling_adamw
from dcamt.networks.backbone import Network
from dcamt.ops.mix import cutmix, paste
from dcamt.section import Fraction, Section
from dcamt.types import IGNORE, Batch, Progress, Update

Rate = Annotated[float, Field(ge=0, lt=1)]


class CrossMatch(Method):
    """One V-Net with dropout between encoder and decoder."""

    views = 2

    class Config(Section):
        image: float = 0.25
        """Weight of the loss between the plain patch and its strong views."""
        alike: Fraction = 0.3
        """Share of L_alike; L_clean has the rest."""
        threshold: Fraction = 0.75
        """Confidence from which a voxel counts at the start of the run, in units of ln 2."""
        dropout: Rate = 0.5
        """Dropout at the bottleneck, in place of `network.dropout`."""
        weak: Rate = 0.25
        """Dropout of channels in the weak decoding."""
        strong: Rate = 0.75
        """Dropout of channels in the strong decoding."""
        boxes: Fraction = 0.5
        """Probability that a strong view gets a box of another patch."""
        learning_rate: PositiveFloat = 1e-3
        """Learning rate of AdamW at the start."""

    config: Config

    def __init__(self, config: Config, network: Network):
        super().__init__(config, network)
        self.network = network(dropout=config.dropout)

    def optimizer(self, part: str, parameters: list[nn.Parameter], train: TrainConfig) -> Optimizer:
        return falling_adamw(parameters, self.config.learning_rate, train)

    def step(self, batch: Batch, at: Progress, update: Update) -> dict[str, Tensor]:
        c = self.config
        count = len(batch.image_u)
        taken_1, taken_2 = (cutmix(batch.inside_u, sides(count, c.boxes)) for _ in range(2))
        s_1, s_2 = paste(batch.strong_u[0], taken_1), paste(batch.strong_u[1], taken_2)
        logits_l, *of_w = self._decode(batch.image_l, batch.image_u)
        logits_s1, logits_s2, weak_s2, strong_s2 = self._decode(s_1, s_2)
        threshold = (c.threshold + (1 - c.threshold) * at.ramp(1.0)) * math.log(2)
        clean, weak, strong = (certain_label(logits, batch.inside_u, threshold) for logits in of_w)
        clean_1, clean_2 = paste(clean, taken_1), paste(clean, taken_2)
        weak_2, strong_2 = paste(weak, taken_2), paste(strong, taken_2)
        supervised = dice_ce(logits_l, batch.label_l)
        image = agreement(logits_s1, clean_1) + agreement(logits_s2, clean_2)
        of_weak_view = agreement(of_w[1], clean) + agreement(of_w[2], clean)
        of_strong_view = agreement(weak_s2, clean_2) + agreement(strong_s2, clean_2)
        by_clean = (of_weak_view + of_strong_view) / 4
        alike = (agreement(weak_s2, weak_2) + agreement(strong_s2, strong_2)) / 2
        distilled = (1 - c.alike) * by_clean + c.alike * alike
        update(0.5 * (supervised + c.image * image + distilled))
        return {
            "supervised": supervised,
            "image": image,
            "clean": by_clean,
            "alike": alike,
            "certain": masked_mean(clean != IGNORE, batch.inside_u),
        }

    def _decode(self, plain: Tensor, dropped: Tensor) -> tuple[Tensor, ...]:
        """Logits of ``plain`` and ``dropped``, both clean, and of ``dropped`` with less and more
        feature dropout."""
        network = self.network
        features, skips = network.encode(torch.cat([plain, dropped]))
        levels = [network.dropout(features), *skips]
        less, more = (
            [F.dropout3d(level[len(plain) :], rate) for level in levels]
            for rate in (self.config.weak, self.config.strong)
        )
        features, *skips = (torch.cat(parts) for parts in zip(levels, less, more, strict=True))
        logits = network.head(network.upsample(features, skips))
        return logits.split([len(plain), *3 * [len(dropped)]])


def agreement(logits: Tensor, label: Tensor) -> Tensor:
    """The Dice loss on unlabelled patches."""
    return soft_dice(logits, label, background=logits.shape[1] > 2)


def certain_label(logits: Tensor, inside: Tensor, threshold: float) -> Tensor:
    """Classes of ``(B, K, X, Y, Z)``, IGNORE where none has ``threshold`` or not ``inside``."""
    p = logits.detach().float().softmax(1)
    return pseudo_label(p, inside & (p.amax(1) >= threshold))


def sides(count: int, chance: float) -> Tensor:
    """Sides ``(count,)`` of boxes of 2 to 40 % of a patch's volume; 0 for those there are none."""
    volume = 0.02 + 0.38 * torch.rand(count)
    return volume ** (1 / 3) * (torch.rand(count) < chance)
