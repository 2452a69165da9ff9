"""Losses between two predictions.

Shapes: logits and probabilities ``(B, K, X, Y, Z)``, inside ``(B, X, Y, Z)``. ``inside`` marks
real voxels; padding never counts.
"""

import torch.nn.functional as F
from torch import Tensor


def masked_mean(value: Tensor, inside: Tensor) -> Tensor:
    """Mean of ``value`` where ``inside`` holds; 0 if it holds nowhere."""
    return (value * inside).sum() / inside.sum().clamp(min=1)


def masked_mse(output: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """Mean squared error over the channels of ``(B, ?, X, Y, Z)`` and the voxels ``inside``."""
    return masked_mean((output.float() - target).square().mean(1), inside)


def softmax_mse(logits: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """Mean squared error between ``softmax(logits)`` and probabilities ``target``.

    Tarvainen and Valpola, "Mean teachers", NeurIPS 2017; mean over classes and voxels.
    """
    return masked_mse(logits.float().softmax(1), target, inside)


def distillation(learner: Tensor, source: Tensor, inside: Tensor, temperature: float) -> Tensor:
    """``tau^2 KL(softmax(source / tau) || softmax(learner / tau))``, mean over voxels.

    DCA-MT eqs. 7-9. ``source`` teaches and receives no gradient; ``temperature`` is tau.
    """
    target = (source.detach().float() / temperature).log_softmax(1)
    output = (learner.float() / temperature).log_softmax(1)
    divergence = F.kl_div(output, target, log_target=True, reduction="none").sum(1)
    return temperature**2 * masked_mean(divergence, inside)


def soft_dice_between(logits: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """1 - Dice of ``softmax(logits)`` and probabilities ``target``, mean over the foreground.

    Squares in the denominator, sums over the batch and the voxels ``inside``, as the supervised
    loss has them (``overlap.soft_dice``).
    """
    real = inside.unsqueeze(1)
    q, p = logits.float().softmax(1)[:, 1:] * real, target[:, 1:] * real
    over = (0, 2, 3, 4)
    size = q.square().sum(over) + p.square().sum(over)
    dice = (2 * (q * p).sum(over) + 1e-5) / (size + 1e-5)
    return 1 - dice.mean()
