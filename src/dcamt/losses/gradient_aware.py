"""Losses for classes that are rare or absent. Shapes as in dcamt.losses.overlap.

Qi et al., "Gradient-aware for class-imbalanced semi-supervised medical image segmentation",
ECCV 2024.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dcamt.losses.overlap import one_hot
from dcamt.types import IGNORE


def ga_dice(logits: Tensor, label: Tensor, smooth: float = 1e-5) -> Tensor:
    """1 - Dice of the classes present, background too; for one absent, the false positives.

    Sums are over the whole batch. The Dice of an absent class has next to no gradient. Its term is
    ``sum_i w_i p_i`` over the N voxels with a label, with w = p / N detached: the gradient of each
    voxel is in proportion to its own false probability.
    """
    inside = (label != IGNORE).unsqueeze(1)
    p = logits.float().softmax(1) * inside
    y = one_hot(label, p.shape[1])
    over = (0, 2, 3, 4)
    present = 1 - (2 * (p * y).sum(over) + smooth) / ((p * p).sum(over) + y.sum(over) + smooth)
    absent = (p.detach() * p).sum(over) / inside.sum().clamp(min=1)
    return torch.where(y.sum(over) > 0, present, absent).mean()


def ga_cross_entropy(logits: Tensor, label: Tensor, share: float, gamma: float) -> Tensor:
    """Cross-entropy over the hardest ``share`` of the voxels, balanced between classes.

    Of the M voxels kept, ``n_k`` have class k, and their losses the sum ``s_k``; the result is
    ``sum_k s_k / (n_k^(1 - gamma) M^gamma)``: the plain mean for gamma = 1, the sum of the means of
    the classes for gamma = 0. 0 if no voxel has a label.
    """
    loss = F.cross_entropy(logits.float(), label, ignore_index=IGNORE, reduction="none")
    kept = label != IGNORE
    if share < 1:
        ranked = loss.detach().masked_fill(~kept, -1).flatten().sort(descending=True).values
        last = (share * kept.sum()).ceil().long().clamp(min=1) - 1
        kept = kept & (loss.detach() >= ranked.gather(0, last.reshape(1)))
    of_class = torch.stack([kept & (label == k) for k in range(logits.shape[1])])
    count = of_class.sum((1, 2, 3, 4)).float()
    total = (loss * of_class).sum((1, 2, 3, 4))
    return (total / (count.clamp(min=1) ** (1 - gamma) * kept.sum().clamp(min=1) ** gamma)).sum()
