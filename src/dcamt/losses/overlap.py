"""Supervised losses. Shapes: logits ``(B, K, X, Y, Z)``, label ``(B, X, Y, Z)`` int64."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dcamt.types import IGNORE


def one_hot(label: Tensor, classes: int) -> Tensor:
    """``(B, X, Y, Z)`` to ``(B, classes, X, Y, Z)`` float32; IGNORE is no class at all."""
    every = torch.arange(classes, device=label.device)
    return (label.unsqueeze(-1) == every).movedim(-1, 1).float()


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean over the voxels whose label is not IGNORE; 0 if there are none."""
    return _cross_entropy(logits.float().log_softmax(1), label)


def soft_dice(
    logits: Tensor, label: Tensor, smooth: float = 1e-5, background: bool = False
) -> Tensor:
    """1 - Dice with squared terms in the denominator, mean over the foreground classes.

    With ``background`` it is the mean over all classes. Milletari et al., "V-Net", 3DV 2016, eq. 3,
    with sums over the whole batch. Voxels labelled IGNORE do not count.
    """
    return _soft_dice(logits.float().softmax(1), label, smooth, first=0 if background else 1)


def dice_ce(logits: Tensor, label: Tensor) -> Tensor:
    """The protocol's supervised loss: 0.5 (cross-entropy + soft Dice)."""
    log_p = logits.float().log_softmax(1)  # once for both: at full size it is felt
    return 0.5 * (_cross_entropy(log_p, label) + _soft_dice(log_p.exp(), label))


def _cross_entropy(log_p: Tensor, label: Tensor) -> Tensor:
    total = F.nll_loss(log_p, label, ignore_index=IGNORE, reduction="sum")
    return total / (label != IGNORE).sum().clamp(min=1)


def _soft_dice(p: Tensor, label: Tensor, smooth: float = 1e-5, first: int = 1) -> Tensor:
    y = one_hot(label, p.shape[1])[:, first:]
    p = p[:, first:] * (label != IGNORE).unsqueeze(1)
    over = (0, 2, 3, 4)
    overlap = (p * y).sum(over)
    size = (p * p).sum(over) + y.sum(over)
    dice = (2 * overlap + smooth) / (size + smooth)
    return 1 - dice.mean()


def pseudo_label(scores: Tensor, inside: Tensor) -> Tensor:
    """The highest-scoring class of ``(B, K, X, Y, Z)`` as a label, IGNORE outside ``inside``."""
    return scores.detach().argmax(1).masked_fill(~inside, IGNORE)
