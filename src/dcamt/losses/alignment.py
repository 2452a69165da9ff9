"""Alignment of two branches' features. Items: ``(N, D)`` float32, one row per item.

An item is a pooled sample or a bottleneck voxel ("token"); classes: ``(N,)`` int64.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def items(
    teacher: Tensor,
    student: Tensor,
    voxels: Tensor,
    stride: tuple[int, int, int],
    units: str,
    share: float,
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
    votes = F.avg_pool3d(voxels, stride).movedim(1, -1).flatten(0, 3)
    known = votes.sum(1)
    most, foreground = votes[:, 1:].max(1)
    classes = torch.where((most > 0) & (most >= share * known), foreground + 1, 0)
    seen = (known > 0).nonzero().squeeze(1)  # once: a GPU waits for it

    def rows(features: Tensor) -> Tensor:
        return features.float().movedim(1, -1).flatten(0, 3)[seen]

    return rows(teacher), rows(student), classes[seen]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """``|x_i - y_j|^2``, ``(N, M)``; in float32 even under autocast, where it would cancel out."""
    with torch.autocast(x.device.type, enabled=False):
        x, y = x.float(), y.float()
        products = x @ y.T
        return (x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * products).clamp(min=0)


def mmd(teacher: Tensor, student: Tensor, bandwidths: Sequence[float] = (1.0,)) -> Tensor:
    """Squared maximum mean discrepancy with an RBF kernel (DCA-MT eqs. 1-3).

    ``k(x, y) = exp(-|x - y|^2 / (2 s^2))`` and ``MMD^2 = mean k(T, T) + mean k(S, S) - 2 mean
    k(T, S)``. s is the median distance over both sets (no gradient) times each of ``bandwidths``,
    over which the result is averaged. 0 if there are no items.
    """
    if not len(teacher):
        return teacher.sum() + student.sum()
    both = torch.cat([teacher, student])
    distances = squared_distances(both, both)
    n = len(teacher)
    # Off the diagonal: without its first element, every row of one more ends on it.
    off_diagonal = distances.detach().flatten()[1:].view(len(both) - 1, len(both) + 1)[:, :-1]
    median = off_diagonal.median().clamp(min=1e-12)
    total = distances.new_zeros(())
    for factor in bandwidths:
        kernel = torch.exp(-distances / (2 * factor**2 * median))
        total = total + kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()
    return total / len(bandwidths)


def intra_inter(
    teacher: Tensor, student: Tensor, classes: Tensor, means: bool = True
) -> tuple[Tensor, Tensor]:
    """Pull same-class and push different-class features across branches (DCA-MT eqs. 4-5).

    Returns ``L_intra = mean |t_i - s_j|^2`` over pairs of equal class, and ``L_inter = -mean
    |t_i - s_j|^2`` over pairs of different class; a set without pairs gives 0. Features are
    centred and scaled to unit length first, so the push is bounded: raw features have no bound.

    With ``means``, t_i and s_j are the mean features of each class, otherwise single items, as in
    the paper. The pull between single items, which weighs more than the push, is satisfied when all
    items of the bottleneck are alike, and then the bottleneck tells nothing more.
    """
    centre = torch.cat([teacher, student]).mean(0)
    unit_t, unit_s = (F.normalize(x - centre, dim=1) for x in (teacher, student))
    if means:
        present = classes.unique()
        members = (present[:, None] == classes).float()
        share = members / members.sum(1, keepdim=True)
        unit_t, unit_s, classes = share @ unit_t, share @ unit_s, present
    distances = squared_distances(unit_t, unit_s)
    same = (classes[:, None] == classes).float()
    intra = (distances * same).sum() / same.sum().clamp(min=1)
    inter = (distances * (1 - same)).sum() / (1 - same).sum().clamp(min=1)
    return intra, -inter
