"""Losses of a network that gives evidence for each class instead of probabilities.

Evidence e >= 0 makes a Dirichlet distribution of concentration a = e + 1, ``(B, K, X, Y, Z)``; its
strength is S = sum_k a_k and its expected probability a / S. Label: ``(B, X, Y, Z)`` int64.
Sensoy et al., "Evidential deep learning to quantify classification uncertainty", NeurIPS 2018.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dcamt.losses.consistency import masked_mean
from dcamt.losses.overlap import one_hot
from dcamt.types import IGNORE


def concentration(logits: Tensor) -> Tensor:
    """``softplus(logits) + 1`` in float32."""
    return F.softplus(logits.float()) + 1


def uncertainty(a: Tensor) -> Tensor:
    """``K / S``, ``(B, X, Y, Z)``: 1 without any evidence, towards 0 with much of it."""
    return a.shape[1] / a.sum(1)


def evidential_cross_entropy(a: Tensor, label: Tensor) -> Tensor:
    """Expected cross-entropy ``digamma(S) - digamma(a_y)``, mean over labelled voxels."""
    of_label = a.gather(1, label.clamp(min=0).unsqueeze(1)).squeeze(1)
    return masked_mean(torch.digamma(a.sum(1)) - torch.digamma(of_label), label != IGNORE)


def misleading_evidence(a: Tensor, label: Tensor) -> Tensor:
    """KL divergence to the uniform Dirichlet of what evidence there is for the wrong classes.

    ``KL(Dir(b) || Dir(1))`` with b = a, but 1 for the true class; mean over labelled voxels.
    """
    y = one_hot(label, a.shape[1])
    b = y + (1 - y) * a
    strength = b.sum(1)
    spread = (b - 1) * (torch.digamma(b) - torch.digamma(strength).unsqueeze(1))
    normaliser = torch.lgamma(strength) - math.lgamma(a.shape[1]) - torch.lgamma(b).sum(1)
    return masked_mean(normaliser + spread.sum(1), label != IGNORE)
