"""Noise on images."""

import torch
from torch import Tensor


def noisy(image: Tensor) -> Tensor:
    """``image`` plus Gaussian noise, std 0.1 clipped to +-0.2: the mean-teacher family's."""
    return image + (0.1 * torch.randn_like(image)).clamp(-0.2, 0.2)
