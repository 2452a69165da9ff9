"""Random changes of intensity: drawn apart from applied, so that any of them can be made again.

The kinds and their order are those of nnU-Net's training (Isensee et al., Nature Methods 2021);
the transforms are MONAI's. Each channel has draws of its own.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from dcamt.augmentation import IntensityConfig

Changes = list[list[tuple[str, float, int]]]
"""For each channel: what is changed, in this order; by how much; and a seed for what is random."""


def draw_changes(rng: Generator, channels: int, chances: IntensityConfig) -> Changes:
    """What happens to each channel of a patch; draws nothing for what never happens."""
    return [_draw_channel(rng, chances) for _ in range(channels)]


def _draw_channel(rng: Generator, chances: IntensityConfig) -> list[tuple[str, float, int]]:
    drawn = []
    for name in IntensityConfig.model_fields:
        probability, least, most = getattr(chances, name)
        if probability and rng.random() < probability:
            drawn.append((name, float(rng.uniform(least, most)), int(rng.integers(2**31))))
    return drawn


def apply_changes(image: NDArray[np.float32], changes: Changes) -> NDArray[np.float32]:
    """``(C, X, Y, Z)`` float32 with the intensities changed; the same array if nothing is."""
    if not any(changes):
        return image
    channels = zip(torch.from_numpy(image).split(1), changes, strict=True)
    result: NDArray[np.float32] = torch.cat([_changed(*channel) for channel in channels]).numpy()
    return result


def _changed(channel: Tensor, what: list[tuple[str, float, int]]) -> Tensor:
    for name, amount, seed in what:
        channel = _TRANSFORMS[name](channel, amount, seed)
    return channel


@cache
def _monai() -> Any:
    """MONAI's transforms; to import them takes seconds, and not every training needs them."""
    from monai import transforms  # noqa: PLC0415

    return transforms


def _plain(result: Any) -> Tensor:
    found: Tensor = result.as_tensor() if hasattr(result, "as_tensor") else result
    return found


def _noise(x: Tensor, std: float, seed: int) -> Tensor:
    drawn = np.random.default_rng(seed).standard_normal(x.shape, np.float32)
    return x + std * torch.from_numpy(drawn)


def _blur(x: Tensor, sigma: float, seed: int) -> Tensor:
    return _plain(_monai().GaussianSmooth(sigma)(x))


def _contrast(x: Tensor, factor: float, seed: int) -> Tensor:
    change = _monai().ScaleIntensityFixedMean(factor - 1, preserve_range=True)
    return _plain(change(x))


def _low_resolution(x: Tensor, kept: float, seed: int) -> Tensor:
    change = _monai().RandSimulateLowResolution(prob=1.0, zoom_range=(kept, kept))
    return _plain(change(x))


def _gamma(x: Tensor, exponent: float, seed: int) -> Tensor:
    return _plain(_monai().AdjustContrast(exponent, retain_stats=True)(x))


def _inverted_gamma(x: Tensor, exponent: float, seed: int) -> Tensor:
    change = _monai().AdjustContrast(exponent, invert_image=True, retain_stats=True)
    return _plain(change(x))


_TRANSFORMS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "brightness": lambda x, factor, seed: x * factor,
    "contrast": _contrast,
    "low_resolution": _low_resolution,
    "inverted_gamma": _inverted_gamma,
    "gamma": _gamma,
}
"""By name: a channel ``(1, X, Y, Z)``, an amount and a seed to the channel changed."""
