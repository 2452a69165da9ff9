"""Noise on images, and changes of their intensity."""

import torch
from torch import Tensor


def noisy(image: Tensor) -> Tensor:
    """``image`` plus Gaussian noise, std 0.1 clipped to +-0.2: the mean-teacher family's."""
    return image + (0.1 * torch.randn_like(image)).clamp(-0.2, 0.2)


def jittered(image: Tensor, strength: float) -> Tensor:
    """Contrast and brightness of every channel of every patch changed at random.

    ``a x + b`` with a within 1 +- ``strength`` and b within +-``strength``, in standard deviations.
    """
    change = strength * (2 * torch.rand(2, *image.shape[:2], 1, 1, 1, device=image.device) - 1)
    return image * (1 + change[0]) + change[1]
